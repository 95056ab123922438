"""A decoder's rows where a model is divided among ranks: each rank has them, and rank 0 says what becomes of them.

A step's own collectives are within it, and its tokens stay on the devices, so one message for each step is all that the
hosts say to each other: which rows changed since the last one, and how many are computed.
"""

from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gemline.engine.ranks import Leader
from gemline_kernels.decoding import Blocks, Launched, Row, Rows


class Launch(NamedTuple):
    """What rank 0 tells the others before each step of the rows. First rows are emptied, then filled."""

    cleared: tuple[int, ...]
    newcomers: Mapping[int, Row]
    tables: Mapping[int, Blocks]
    num_rows: int
    truncates: bool


def launch(rows: Rows, ask: Launch) -> Launched:
    """The step, on one rank."""
    rows.clear(ask.cleared)
    rows.put(ask.newcomers)
    rows.set_blocks(ask.tables)
    return rows.launch(ask.num_rows, truncates=ask.truncates)


class DividedRows:
    """All ranks' rows, as rank 0 fills and launches them: `Rows`, whose methods say the rest."""

    def __init__(self, own: Rows, leader: Leader) -> None:
        self.num_rows = own.num_rows
        self._own = own
        self._leader = leader
        self._cleared: set[int] = set()  # since the last step, as the rest
        self._newcomers: dict[int, Row] = {}
        self._tables: dict[int, Blocks] = {}

    def put(self, rows: Mapping[int, Row]) -> None:
        """With the next step."""
        self._newcomers.update(rows)

    def set_blocks(self, tables: Mapping[int, Blocks]) -> None:
        """With the next step."""
        copies = {row: Blocks(*(array("q", of_kind) for of_kind in blocks)) for row, blocks in tables.items()}
        self._tables.update(copies)

    def clear(self, rows: Sequence[int]) -> None:
        """With the next step."""
        self._cleared.update(rows)
        for row in rows:
            self._newcomers.pop(row, None)
            self._tables.pop(row, None)

    def launch(self, num_rows: int, *, truncates: bool) -> Launched:
        """Raises RanksBroken too."""
        ask = Launch(tuple(sorted(self._cleared)), self._newcomers, self._tables, num_rows, truncates)
        self._cleared, self._newcomers, self._tables = set(), {}, {}
        with self._leader.together(ask):
            return launch(self._own, ask)
