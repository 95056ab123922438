"""Rows of all ranks: what rank 0 is told between two steps reaches the others with the next one, in one message."""

from array import array
from typing import Any

import pytest
import torch
from support.thread_ranks import ThreadRanks, together

from gemline.engine.divided_rows import DividedRows, Launch, launch
from gemline.engine.kv_cache import KvCache
from gemline.engine.ranks import Leader, RanksBroken
from gemline.engine.toy import TOY_CONFIG, ToyModel
from gemline.engine.toy_decoder import ToyDecoder
from gemline_kernels.decoding import Blocks, Choice, Launched, Row

NUM_ROWS = 4


class Told(ThreadRanks):
    """Counts what rank 0 says."""

    num_told = 0

    def tell(self, what: Any) -> None:
        self.num_told += 1
        super().tell(what)


def toy_rows() -> ToyDecoder:
    return ToyDecoder(ToyModel(), KvCache(TOY_CONFIG, 8, 8, 4, torch.float32), NUM_ROWS)


def row(token_id: int, position: int = 1) -> Row:
    return Row(token_id, Choice(position, 0.0, 0, 1.0, 0.0, 0))


def blocks(block_id: int) -> Blocks:
    return Blocks([block_id], [block_id])


def state(rows: ToyDecoder) -> tuple[Any, ...]:
    return rows._rows, {at: table for at, table in rows._tables.items() if at in rows._rows}, rows.launched


def follow(ranks: ThreadRanks) -> tuple[Any, ...]:
    own = toy_rows()
    while (ask := ranks.hear()) is not None:
        assert isinstance(ask, Launch)
        launch(own, ask)
    return state(own)


def test_every_rank_does_what_rank_0_was_told_between_two_steps() -> None:
    answers: list[list[int | None]] = []

    def run(ranks: ThreadRanks) -> tuple[Any, ...]:
        if ranks.rank:
            return follow(ranks)
        own = toy_rows()
        rows = DividedRows(own, Leader(ranks))
        assert rows.num_rows == NUM_ROWS
        rows.put({0: row(5), 1: row(6)})
        rows.set_blocks({0: blocks(3), 1: blocks(4)})
        answers.append(rows.launch(2, truncates=False)())
        rows.clear([1])
        rows.put({1: row(9)})  # another one in its place
        rows.set_blocks({1: blocks(5)})
        rows.put({2: row(11)})
        rows.set_blocks({2: blocks(6)})
        rows.clear([2, 0])  # one of them never ran
        answers.append(rows.launch(2, truncates=False)())
        answers.append(rows.launch(2, truncates=False)())
        ranks.tell(None)
        return state(own)

    first, *others = together(3, run)
    assert all(other == first for other in others)
    alone = toy_rows()
    alone.put({1: row(9)})
    alone.set_blocks({1: blocks(5)})
    assert answers[1:] == [alone.launch(2, truncates=False)(), alone.launch(2, truncates=False)()]
    assert first[0].keys() == {1}
    assert first[2] == [2, 2, 2]


def test_a_step_takes_one_message_whatever_changed() -> None:
    def run(ranks: ThreadRanks) -> int:
        if ranks.rank:
            follow(ranks)
            return 0
        told = Told(0, ranks._table)
        rows = DividedRows(toy_rows(), Leader(told))
        rows.put({0: row(5)})
        rows.set_blocks({0: blocks(3)})
        for _ in range(3):
            rows.launch(1, truncates=False)
        rows.clear([0])
        rows.put({0: row(6)})
        rows.set_blocks({0: blocks(2)})
        rows.launch(1, truncates=False)
        ranks.tell(None)
        return told.num_told

    assert together(2, run) == [4, 0]


def test_a_table_that_grows_after_it_was_told_is_sent_as_it_was() -> None:
    """Ranks hear of it only when the step is launched; the sequence's own table goes on changing."""
    table = array("q", [3])

    def run(ranks: ThreadRanks) -> tuple[Any, ...]:
        if ranks.rank:
            return follow(ranks)
        own = toy_rows()
        rows = DividedRows(own, Leader(ranks))
        rows.put({0: row(5)})
        rows.set_blocks({0: Blocks(table, table)})
        table.append(7)
        rows.launch(1, truncates=False)
        ranks.tell(None)
        return state(own)

    for _, tables, _ in together(2, run):
        assert tables == {0: ([3], [3])}


def test_a_launch_that_fails_on_rank_0_breaks_the_group() -> None:
    """The others have queued the step, and wait within it for a rank that has not."""

    class Broken(ToyDecoder):
        def launch(self, num_rows: int, *, truncates: bool) -> Launched:
            raise MemoryError("no room for a graph")

    def run(ranks: ThreadRanks) -> None:
        if ranks.rank:
            assert isinstance(ranks.hear(), Launch)
            return
        rows = DividedRows(Broken(ToyModel(), KvCache(TOY_CONFIG, 8, 8, 4, torch.float32), NUM_ROWS), Leader(ranks))
        for _ in range(2):
            with pytest.raises(RanksBroken, match="no room for a graph"):
                rows.launch(1, truncates=False)

    together(2, run)
