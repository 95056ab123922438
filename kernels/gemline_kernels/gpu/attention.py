"""Paged attention: what is planned once for a step, and the launches of each layer.

A sequence with one new token is decoded: its keys are shared out among programs, and what they find is combined. The
new tokens of the others are cut into tiles, each a program's.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton

from gemline_kernels import reference
from gemline_kernels.gpu.device import decode_attention, decode_plan, prefill_attention
from gemline_kernels.gpu.support import is_max_free, num_processors, upload
from gemline_kernels.scales import UNSCALED, Scales

_DECODE_TILE = 32  # positions at most; no more than a block has
_PREFILL_TILE_VALUES = 8192  # of keys at most: with more, heads of width 256 do not fit into registers
_PREFILL_ROWS = 128  # tokens times heads of a group
_ITEM_BLOCK = 32
_PROGRAMS_PER_PROCESSOR = 4
DECODE_OPTIONS = {"num_warps": 4}
PREFILL_OPTIONS = {"num_warps": 8}
COMBINED_ITEMS = 16  # loaded at a time


class Shape(NamedTuple):
    """The constants of a layer's attention, of which a kernel is compiled for each."""

    num_heads: int
    num_groups: int
    width: int
    block_size: int
    window: int | None
    cap: float

    @classmethod
    def of(cls, query_THK: torch.Tensor, keys_NSGK: torch.Tensor, window: int | None, cap: float) -> "Shape":
        """From a call's tensors."""
        return cls(query_THK.shape[1], keys_NSGK.shape[2], keys_NSGK.shape[3], keys_NSGK.shape[1], window, cap)

    @property
    def repeats(self) -> int:
        """Query heads that read one KV head."""
        return self.num_heads // self.num_groups

    def decode_constants(self) -> dict[str, int | float]:
        """Of `decode_attention`."""
        rows = max(2, triton.next_power_of_2(self.repeats))
        return self._constants(rows, decode_tile(self.block_size), num_stages=3)

    def prefill_constants(self) -> dict[str, int | float]:
        """Of `prefill_attention`."""
        rows = max(_PREFILL_ROWS, triton.next_power_of_2(self.repeats))
        tile = min(_PREFILL_TILE_VALUES // self.width, 64, _power_of_two_in(self.block_size))
        return self._constants(rows, tile, num_stages=2)

    def _constants(self, rows: int, tile: int, num_stages: int) -> dict[str, int | float]:
        return {
            "GROUPS": self.num_groups,
            "REPEATS": self.repeats,
            "ROWS": rows,
            "WIDTH": self.width,
            "BLOCK_SIZE": self.block_size,
            "TILE": tile,
            "WINDOW": self.window or 0,
            "CAP": self.cap,
            "STAGES": num_stages,
        }


@dataclass(frozen=True, slots=True)
class Sequences:
    """B sequences of a step, on the device, int32. One plan per kind of layer is made of it."""

    query_start: torch.Tensor  # [B + 1]
    context_len: torch.Tensor  # [B]
    decode_len: torch.Tensor  # [B]: context_len of those that have one new token, 0 of the others
    prefill_items: torch.Tensor  # [I, 2]: sequence and token, one for each tile of the others' new tokens
    num_decoding: int

    @classmethod
    def of(
        cls, query_start: torch.Tensor, context_len: torch.Tensor, repeats: int, device: torch.device
    ) -> "Sequences":
        """From the CPU's int64 tensors; `repeats` query heads read each KV head."""
        num_new = (query_start[1:] - query_start[:-1]).tolist()
        step = max(1, _PREFILL_ROWS // repeats)
        items = [(b, token) for b, count in enumerate(num_new) if count > 1 for token in range(0, count, step)]
        # The longest first: programs that end late would otherwise begin last.
        before = (context_len - query_start[1:] + query_start[:-1]).tolist()
        items.sort(key=lambda item: -before[item[0]] - item[1])
        decodes = torch.tensor([count == 1 for count in num_new], dtype=torch.bool)
        return cls(
            upload(query_start.tolist(), torch.int32, device),
            upload(context_len.tolist(), torch.int32, device),
            upload((context_len * decodes).tolist(), torch.int32, device),
            upload(items, torch.int32, device).view(-1, 2),
            int(decodes.sum()),
        )


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """Who attends to which keys in layers with one and the same window."""

    items: torch.Tensor  # [I, 3], as `plan_decode` leaves them
    first_item: torch.Tensor  # [B + 1]


def decode_tile(block_size: int) -> int:
    """Positions of one tile of decode attention."""
    return min(_DECODE_TILE, _power_of_two_in(block_size))


def plan_decode(
    decode_len: torch.Tensor, num_items: int, block_size: int, window: int | None, chunk: int = 0
) -> DecodePlan:
    """Shares the keys of sequences, of 0 and more positions each, out among `num_items` programs, at least one each.

    `chunk` tiles each, when given, however many sequences there are: results then do not depend on the batch.
    """
    num_sequences = len(decode_len)
    items = torch.empty((num_items, 3), dtype=torch.int32, device=decode_len.device)
    first_item = torch.empty(num_sequences + 1, dtype=torch.int32, device=decode_len.device)
    decode_plan.plan_decode[(1,)](
        decode_len,
        items,
        first_item,
        num_sequences,
        SEQUENCES=triton.next_power_of_2(num_sequences),
        ITEMS=num_items,
        TILE=decode_tile(block_size),
        WINDOW=window or 0,
        CHUNK=chunk,
        ITEM_BLOCK=_ITEM_BLOCK,
    )
    return DecodePlan(items, first_item)


def decode(
    query_THK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    table_BP: torch.Tensor,
    sequences: Sequences,
    plan: DecodePlan,
    out_THK: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    cap: float,
    scales: Scales = UNSCALED,
) -> None:
    """Fills the rows of out of the sequences that the plan is for."""
    shape = Shape.of(query_THK, keys_NSGK, window, cap)
    sizes = len(plan.items), shape.num_heads
    partial_out = query_THK.new_empty((*sizes, shape.width), dtype=torch.float32)
    partial_sum = query_THK.new_empty(sizes, dtype=torch.float32)
    decode_attention.decode_attention[(len(plan.items), shape.num_groups)](
        query_THK,
        keys_NSGK,
        values_NSGK,
        table_BP,
        sequences.decode_len,
        sequences.query_start,
        plan.items,
        partial_out,
        partial_sum,
        scale * scales.keys,
        scales.values,
        table_BP.shape[1],
        **shape.decode_constants(),
        **DECODE_OPTIONS,
    )
    decode_attention.combine[(len(sequences.decode_len), shape.num_heads)](
        partial_out,
        partial_sum,
        plan.first_item,
        sequences.query_start,
        out_THK,
        HEADS=shape.num_heads,
        WIDTH=shape.width,
        ITEMS=COMBINED_ITEMS,
    )


def prefill(
    query_THK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    table_BP: torch.Tensor,
    sequences: Sequences,
    out_THK: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    cap: float,
    scales: Scales = UNSCALED,
) -> None:
    """Fills the rows of out of the sequences with more than one new token."""
    shape = Shape.of(query_THK, keys_NSGK, window, cap)
    prefill_attention.prefill_attention[(len(sequences.prefill_items), shape.num_groups)](
        query_THK,
        keys_NSGK,
        values_NSGK,
        table_BP,
        sequences.query_start,
        sequences.context_len,
        sequences.prefill_items,
        out_THK,
        scale * scales.keys,
        scales.values,
        table_BP.shape[1],
        **shape.prefill_constants(),
        **PREFILL_OPTIONS,
    )


@dataclass(frozen=True, slots=True)
class StepAttention:
    """Attention of one step in all layers with one window: planned once, called for each."""

    sequences: Sequences
    plan: DecodePlan | None  # None: nobody decodes
    table_BP: torch.Tensor  # int32
    window: int | None
    scale: float
    cap: float

    @classmethod
    def of(
        cls,
        sequences: Sequences,
        table_BP: torch.Tensor,
        keys_NSGK: torch.Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float,
    ) -> "StepAttention":
        """Plans; `keys_NSGK` is any layer's."""
        plan = None
        if sequences.num_decoding:
            block_size, num_groups = keys_NSGK.shape[1:3]
            num_items = num_decode_items(len(sequences.decode_len), num_groups, keys_NSGK.device)
            plan = plan_decode(sequences.decode_len, num_items, block_size, window)
        return cls(sequences, plan, table_BP.to(keys_NSGK.device, torch.int32), window, scale, cap)

    def __call__(
        self, query_THK: torch.Tensor, keys_NSGK: torch.Tensor, values_NSGK: torch.Tensor, scales: Scales = UNSCALED
    ) -> torch.Tensor:
        """out_THK."""
        out_THK = torch.empty_like(query_THK)
        inputs = (query_THK, keys_NSGK, values_NSGK, self.table_BP, self.sequences)
        if self.plan is not None:
            decode(*inputs, self.plan, out_THK, window=self.window, scale=self.scale, cap=self.cap, scales=scales)
        if len(self.sequences.prefill_items):
            prefill(*inputs, out_THK, window=self.window, scale=self.scale, cap=self.cap, scales=scales)
        return out_THK


def paged_attention(
    query_THK: torch.Tensor,
    keys_NSGK: torch.Tensor,
    values_NSGK: torch.Tensor,
    block_table_BP: torch.Tensor,
    query_start: torch.Tensor,
    context_len: torch.Tensor,
    *,
    window: int | None,
    scale: float,
    cap: float | None,
    scales: Scales = UNSCALED,
) -> torch.Tensor:
    """As the reference says; scores without a cap, or with a large one, are left to it."""
    if cap is None or not is_max_free(cap):
        return reference.paged_attention(
            query_THK,
            keys_NSGK,
            values_NSGK,
            block_table_BP,
            query_start,
            context_len,
            window=window,
            scale=scale,
            cap=cap,
            scales=scales,
        )
    repeats = query_THK.shape[1] // keys_NSGK.shape[2]
    sequences = Sequences.of(query_start, context_len, repeats, query_THK.device)
    attend = StepAttention.of(sequences, block_table_BP, keys_NSGK, window=window, scale=scale, cap=cap)
    return attend(query_THK, keys_NSGK, values_NSGK, scales)


def num_decode_items(num_sequences: int, num_groups: int, device: torch.device) -> int:
    """How many pieces keep every processor of the device busy, with at least one for each sequence."""
    return max(num_sequences, num_processors(device) * _PROGRAMS_PER_PROCESSOR // num_groups, 1)


def _power_of_two_in(number: int) -> int:
    """The largest that divides it."""
    return number & -number
