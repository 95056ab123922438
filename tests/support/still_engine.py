"""An engine's blocks and cache without a model: sequences that are prefilled as soon as somebody says so."""

from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import count
from typing import TypeVar

import torch

from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config
from gemline.engine.handover import Handover, kv_ranges
from gemline.engine.kv_cache import DTYPES, KvCache
from gemline.engine.kv_form import KvForm
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.engine.roster import Roster
from gemline.transfer.connection import run_long
from gemline_kernels.reference import stored
from gemline_kernels.scales import UNSCALED, Scales

T = TypeVar("T")

NAMES = {dtype: name for name, dtype in DTYPES.items()}


class StillEngine:
    """A KvMover. Its cache is random from the start, so whatever is prefilled has keys and values."""

    def __init__(
        self,
        config: Gemma2Config,
        num_blocks: int,
        dtype: torch.dtype = torch.float32,
        block_size: int = 4,
        seed: int = 0,
        *,
        revision: str | None = None,
        scales: Scales = UNSCALED,
    ) -> None:
        """With a revision there is a prefix cache, which equal prompts share. `scales` are those of every layer."""
        torch.manual_seed(seed)
        self.config = config
        of_layers = (scales,) * config.num_hidden_layers
        self.cache = KvCache(config, num_blocks, num_blocks, block_size, dtype, scales=of_layers)
        for pool in self.cache.pools:
            for part_NSGK, scale in zip(pool[:2], pool.scales, strict=True):
                part_NSGK.copy_(stored(torch.randn(part_NSGK.shape), dtype, scale))
        sizes = BlockCounts(num_blocks, num_blocks)
        self.roster = Roster(sizes, block_size, config.sliding_window, num_blocks, revision)
        self.handover = Handover(self.cache, self.roster)
        self.movers: Executor = ThreadPoolExecutor(2, initializer=torch.set_num_threads, initargs=(1,))
        self._seq_ids = count(1)

    async def hand_over(self, num_bytes: int, move: Callable[[Handover], T]) -> T:
        return await run_long(num_bytes, lambda: move(self.handover), self.movers)

    def form(self, dtype: str = "", heads: range | None = None) -> KvForm:
        return KvForm.of(self.config, NAMES[self.cache.dtype], dtype, heads)

    def needed(self, num_tokens: int, start: int = 0) -> list[range]:
        return [range(*positions) for positions in kv_ranges(self.config, num_tokens, start)]

    def prefilled(self, num_tokens: int) -> int:
        """A held sequence whose keys and values are there."""
        seq_id = self.queued(num_tokens)
        self.admit(seq_id)
        self.compute(seq_id, num_tokens)
        return seq_id

    def queued(self, num_tokens: int) -> int:
        """A held sequence without blocks."""
        seq_id = next(self._seq_ids)
        self.roster.enqueue(self._request(seq_id, num_tokens, hold=True))
        return seq_id

    def admit(self, seq_id: int) -> None:
        self.roster._admit(self.roster.by_id[seq_id])

    def compute(self, seq_id: int, stop: int) -> None:
        """Its positions before `stop` have keys and values: whatever their blocks hold, or the prefix cache has."""
        sequence = self.roster.by_id[seq_id]
        self.roster._cover(sequence, stop)
        self.roster.computed(sequence, stop)

    def preempt(self, seq_id: int) -> None:
        self.roster.send_back(self.roster.by_id[seq_id])

    def write(self, seq_id: int, value: float) -> None:
        """The same number, for values its opposite, everywhere in the sequence's blocks of global layers."""
        table = self.roster.by_id[seq_id].global_table
        for layer, pool in enumerate(self.cache.pools):
            if not self.config.is_local(layer):
                pool.keys[table.ids().tolist()] = value
                pool.values[table.ids().tolist()] = -value

    def overwrite_free(self, value: float) -> None:
        """As others would who got the blocks that no sequence has."""
        for layer, pool in enumerate(self.cache.pools):
            tables = [
                sequence.local_table if self.config.is_local(layer) else sequence.global_table
                for sequence in self.roster.by_id.values()
            ]
            held = {block_id for table in tables for block_id in table.ids()}
            free = [block_id for block_id in range(pool.keys.shape[0]) if block_id not in held]
            pool.keys[free] = value
            pool.values[free] = value

    def reserved(self, num_tokens: int) -> int:
        """A sequence that waits for its keys and values."""
        seq_id = next(self._seq_ids)
        self.roster.reserve(self._request(seq_id, num_tokens, hold=False))
        self.handover.open(seq_id)
        return seq_id

    def cancel(self, seq_id: int) -> None:
        self.handover.close(seq_id)
        self.roster.remove(seq_id)

    def slots(self, seq_id: int, layer: int, positions: range) -> list[int]:
        """Where a sequence's positions are in the layer's pool."""
        sequence = self.roster.by_id[seq_id]
        table = sequence.local_table if self.config.is_local(layer) else sequence.global_table
        return table.slots(positions.start, positions.stop)

    def contents(self, seq_id: int, layer: int, positions: range) -> torch.Tensor:
        """both_2TGK of a sequence; those of fp8 as they are read, float32."""
        found = self.cache.read(layer, torch.tensor(self.slots(seq_id, layer, positions)))
        if self.cache.dtype != torch.float8_e4m3fn:
            return torch.stack(found[:2])
        return torch.stack([part.float() * scale for part, scale in zip(found[:2], found.scales, strict=True)])

    def _request(self, seq_id: int, num_tokens: int, *, hold: bool) -> EngineRequest:
        params = SamplingParams(max_tokens=9)
        return EngineRequest(seq_id, (1,) * num_tokens, num_tokens, params, hold, cache_salt=b"tenant")
