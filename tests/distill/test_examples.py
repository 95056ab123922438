"""Batches: rows of one length, nothing lost, and the same again after a restart."""

from hypothesis import given
from hypothesis import strategies as st

from gemline.distill.examples import Batch, Batcher, Example, as_batch


class Numbered:
    """Example i holds i in every token, and is as long as a list says."""

    def __init__(self, lengths: list[int]) -> None:
        self._lengths = lengths

    def __call__(self, index: int, progress: float) -> Example:
        length = self._lengths[index % len(self._lengths)]
        return Example([index + 1] * length, [False] + [True] * (length - 1))


def rows(batch: Batch) -> list[list[int]]:
    return [[token for token in row if token] for row in batch.ids_BT.tolist()]


lengths_of = st.lists(st.integers(2, 200), min_size=1, max_size=8)


@given(lengths_of)
def test_examples_come_whole_each_once_and_none_is_lost(lengths: list[int]) -> None:
    batcher = Batcher(Numbered(lengths), tokens_per_batch=256, max_length=256)
    seen = [row for _ in range(6) for row in rows(batcher.next(0.0))]
    index, waiting = batcher.state()
    numbers = sorted([row[0] - 1 for row in seen] + [row.ids[0] - 1 for held in waiting.values() for row in held])
    assert numbers == list(range(index))
    assert all(len(row) == lengths[(row[0] - 1) % len(lengths)] for row in seen)


@given(lengths_of, st.integers(0, 4))
def test_a_restored_batcher_gives_the_same_batches(lengths: list[int], num_before: int) -> None:
    first, second = (Batcher(Numbered(lengths), 256, 256) for _ in range(2))
    for _ in range(num_before):
        first.next(0.0)
    second.restore(first.state())
    for _ in range(3):
        assert rows(first.next(0.0)) == rows(second.next(0.0))


def test_an_example_that_is_too_long_is_cut() -> None:
    batch = Batcher(Numbered([99]), tokens_per_batch=64, max_length=64).next(0.0)
    assert batch.ids_BT.shape == (1, 64)
    assert batch.targets_T.tolist() == [1] * 63


def test_a_target_is_the_token_behind_its_place() -> None:
    batch = as_batch([Example([7, 8, 9], [True, False, True]), Example([4, 5], [False, True])], 4)
    assert batch.ids_BT.tolist() == [[7, 8, 9, 0], [4, 5, 0, 0]]
    assert batch.places_T.tolist() == [1, 4]
    assert batch.targets_T.tolist() == [9, 5]
    assert batch.num_tokens == 8
