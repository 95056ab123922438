"""A plan as people read it, and as programs do. Formats; computes nothing that `capacity` and `floors` do not."""

from dataclasses import dataclass
from typing import Any

from gemline.engine.footprint import Footprint
from gemline.sizing.capacity import Capacity, capacity, what_fits
from gemline.sizing.floors import decode_floor, prefill_floor
from gemline.sizing.gpus import Gpu

STREAMS = (1, 8, 32, 64, 128, 256)
_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Report:
    """Of one model on GPUs of one kind."""

    model: str
    shard: Footprint
    gpu: Gpu
    context: int

    @property
    def room(self) -> Capacity:
        """On each GPU."""
        return capacity(self.shard, self.gpu)

    @property
    def num_sequences(self) -> int:
        """Of the context's length, that fit at a time."""
        return self.room.num_sequences(self.shard, self.context)

    def as_dict(self) -> dict[str, Any]:
        """Bytes are of one GPU."""
        room, whole = self.room, prefill_floor(self.shard, self.gpu, self.context)
        return {
            "model": self.model,
            "gpu": self.gpu.name,
            "tensor_parallel": self.shard.num_ranks,
            "weights": self.shard.weights,
            "kv": self.shard.cache,
            "context": self.context,
            "fits": self.num_sequences > 0,
            "weight_bytes": room.weight_bytes,
            "kv_free_bytes": room.free_bytes,
            "kv_bytes_per_token": self.shard.sequence_bytes(1),
            "kv_bytes_per_context": self.shard.sequence_bytes(self.context),
            "num_tokens": room.num_tokens(self.shard),
            "num_sequences": self.num_sequences,
            "prefill_floor_s": whole.step_s,
            "decode_floors": [
                {"streams": number, "tokens_per_s": self._tokens_per_s(number), "fits": number <= self.num_sequences}
                for number in STREAMS
            ],
        }

    def as_text(self) -> str:
        """Some lines."""
        shard, room = self.shard, self.room
        lines = [
            f"{self.model} on {shard.num_ranks} x {self.gpu.name}: {shard.weights} weights, {shard.cache} KV cache",
            f"weights   {_gib(room.weight_bytes)} a GPU; memory {_gib(self.gpu.memory_bytes)}",
        ]
        if not self.num_sequences:
            return "\n".join([*lines, *self._missing()])
        kept = self.context * shard.sequence_bytes(1)
        whole = prefill_floor(shard, self.gpu, self.context)
        lines += [
            f"KV cache  {_gib(room.free_bytes)} a GPU: {room.num_tokens(shard):,} tokens;"
            f" {self.num_sequences} sequences of {self.context}"
            f" ({room.free_bytes // kept} if windows were not cut)",
            f"prefill   {self.context} tokens in {whole.step_s * 1e3:.1f} ms at best"
            f" ({self.context / whole.step_s:,.0f} tokens/s)",
            f"decode    tokens/s at best, each stream behind {self.context} tokens:",
        ]
        for number in STREAMS:
            floor = decode_floor(shard, self.gpu, number, self.context)
            what = "" if number <= self.num_sequences else "   does not fit"
            rate = f"{self._tokens_per_s(number):,.0f}"
            lines.append(f"{number:>12} streams {rate:>8}   a step {floor.step_s * 1e3:.1f} ms{what}")
        return "\n".join(lines)

    def _tokens_per_s(self, num_streams: int) -> float:
        return num_streams / decode_floor(self.shard, self.gpu, num_streams, self.context).step_s

    def _missing(self) -> list[str]:
        lacking = self.shard.sequence_bytes(self.context) - self.room.free_bytes
        lines = [f"does not fit: one sequence of {self.context} tokens lacks {_gib(lacking)} a GPU. What would:"]
        for shard, gpu in what_fits(self.shard, self.gpu, self.context):
            number = capacity(shard, gpu).num_sequences(shard, self.context)
            lines.append(f"  {shard.num_ranks} x {gpu.name}, {shard.weights} weights: {number} sequences")
        return lines


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.1f} GiB"
