"""Sequences in rows on a device, with a step queued ahead of the one that is asked for. Knows no scheduler's mind.

While the host hands out one step's tokens and plans the next, the device computes that next step already. Whoever has
left by then is not asked for what its row computed. Whoever joins is queued with the others' next step, and gets its
token with theirs.
"""

import heapq
from collections.abc import Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import NamedTuple

from gemline.engine.choosing import choice, is_chosen_by_logits
from gemline.engine.scheduler import Chunk
from gemline.engine.sequence import Sequence
from gemline_kernels.decoding import Blocks, Launched, Row, Rows


class Answers(NamedTuple):
    """What came of some chunks: tokens, None where one failed; and which of them are queued only."""

    token_ids: dict[int, int | None]
    queued: frozenset[int]


class _Wanted(NamedTuple):
    """A sequence, and its length in the step to be queued."""

    sequence: Sequence
    length: int


@dataclass(slots=True)
class _Seat:
    """A sequence's row, and its length in the step that was queued last."""

    sequence: Sequence
    row: int
    length: int
    num_changes: int = -1  # of its tables, when the device was told of them


class DecodeRows:
    """Who sits where in rows over blocks of `block_size`. Whoever has a seat is in the queued step."""

    def __init__(self, rows: Rows, block_size: int) -> None:
        self._rows = rows
        self._block_size = block_size
        self._free = list(range(rows.num_rows))
        self._seats: dict[int, _Seat] = {}
        self._ahead: Launched | None = None

    def takes(self, chunk: Chunk, sequence: Sequence) -> bool:
        """Whether a row can compute that chunk: the last token of a sequence that goes on here."""
        is_last = chunk.stop - chunk.start == 1 and chunk.stop == sequence.num_tokens
        return is_last and not sequence.hold and is_chosen_by_logits(sequence)

    def run(self, chunks: SequenceOf[Chunk], sequences: Mapping[int, Sequence]) -> Answers:
        """Computes chunks that it takes. Is to be called at every step: who has no chunk any more loses the seat."""
        wanted = {chunk.seq_id: _Wanted(sequences[chunk.seq_id], chunk.stop) for chunk in chunks}
        self._dismiss([seq_id for seq_id, seat in self._seats.items() if not _is_as_wanted(seat, wanted.get(seq_id))])
        seated = {seq_id: one for seq_id, one in wanted.items() if seq_id in self._seats}
        joining = {seq_id: one for seq_id, one in wanted.items() if seq_id not in self._seats}
        if not seated:
            seated, joining = joining, {}
            self._queue(seated)
        rows = {seq_id: self._seats[seq_id].row for seq_id in seated}
        launched = self._ahead
        self._queue(self._following(seated) | joining)
        token_ids = launched() if launched is not None and rows else []
        return Answers({seq_id: token_ids[row] for seq_id, row in rows.items()}, frozenset(joining))

    def reset(self) -> None:
        """Nobody has a seat."""
        self._ahead = None
        self._dismiss(list(self._seats))

    def _following(self, wanted: dict[int, _Wanted]) -> dict[int, _Wanted]:
        """Those that may go on after this step and have a block for it."""
        return {
            seq_id: _Wanted(sequence, length + 1)
            for seq_id, (sequence, length) in wanted.items()
            if sequence.may_go_on
            and min(sequence.global_table.num_blocks, sequence.local_table.num_blocks) * self._block_size > length
        }

    def _queue(self, wanted: dict[int, _Wanted]) -> None:
        """The step of those sequences; who has a seat already must have been in the step before."""
        self._dismiss([seq_id for seq_id in self._seats if seq_id not in wanted])
        newcomers: dict[int, Row] = {}
        for seq_id, (sequence, length) in wanted.items():
            seat = self._seats.get(seq_id)
            if seat is None:
                seat = self._seats[seq_id] = _Seat(sequence, heapq.heappop(self._free), length)
                newcomers[seat.row] = Row(sequence.token_ids[-1], choice(sequence.params, sequence.num_tokens))
            seat.length = length
        num_rows = 1 + max((seat.row for seat in self._seats.values()), default=-1)
        self._ahead = None
        if _power_of_two(num_rows) > _power_of_two(len(self._seats)):  # seats anew, from the first row on, next time
            self._dismiss(list(self._seats))
        elif self._seats:
            self._rows.put(newcomers)
            self._rows.set_blocks(self._changed_tables())
            truncates = any(_truncates(seat.sequence) for seat in self._seats.values())
            self._ahead = self._rows.launch(num_rows, truncates=truncates)

    def _changed_tables(self) -> dict[int, Blocks]:
        changed: dict[int, Blocks] = {}
        for seat in self._seats.values():
            tables = seat.sequence.global_table, seat.sequence.local_table
            num_changes = sum(table.num_changes for table in tables)
            if num_changes != seat.num_changes:
                seat.num_changes = num_changes
                changed[seat.row] = Blocks(*(table.ids() for table in tables))
        return changed

    def _dismiss(self, seq_ids: SequenceOf[int]) -> None:
        rows = [self._seats.pop(seq_id).row for seq_id in seq_ids]
        self._rows.clear(rows)
        for row in rows:
            heapq.heappush(self._free, row)


def _is_as_wanted(seat: _Seat, wanted: _Wanted | None) -> bool:
    return wanted is not None and seat.sequence is wanted.sequence and seat.length == wanted.length


def _truncates(sequence: Sequence) -> bool:
    return sequence.params.top_k > 0 or sequence.params.top_p < 1.0


def _power_of_two(number: int) -> int:
    """The least that is not below it."""
    return 1 << (number - 1).bit_length() if number else 0
