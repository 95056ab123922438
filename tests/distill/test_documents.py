"""Text files as examples: every piece once an epoch, none too long, the same order for the same seed."""

from pathlib import Path

import pytest

from gemline.demo.tokenizer import build_tokenizer
from gemline.distill.documents import Documents
from gemline.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    (tmp_path / "one").write_text(" ".join(f"river{number}" for number in range(60)))
    (tmp_path / "two").write_text("<bos>hello world<bos>good morning")
    return [tmp_path / "one", tmp_path / "two"]


def epoch(documents: Documents, number: int, size: int) -> list[list[int]]:
    return [documents(number * size + place, 0.0).ids for place in range(size)]


def test_every_piece_comes_once_an_epoch_and_orders_differ(paths: list[Path]) -> None:
    documents = Documents(paths, TOKENIZER, 16, seed=0)
    size = next(
        index for index in range(1, 500) if sorted(epoch(documents, 0, index)) == sorted(epoch(documents, 1, index))
    )
    first, second = epoch(documents, 0, size), epoch(documents, 1, size)
    assert first != second
    contents = [TOKENIZER.encode_text(content) for content in (paths[0].read_text(), "hello world", "good morning")]
    assert sum(len(ids) - 1 for ids in first) == sum(map(len, contents))


def test_no_piece_is_longer_than_asked_and_each_begins_with_bos(paths: list[Path]) -> None:
    for ids in epoch(Documents(paths, TOKENIZER, 16, seed=0), 0, 10):
        assert len(ids) <= 16
        assert ids[0] == TOKENIZER.bos_id
        assert TOKENIZER.bos_id not in ids[1:]


def test_a_seed_repeats_its_order_from_any_place(paths: list[Path]) -> None:
    one, other = Documents(paths, TOKENIZER, 16, seed=4), Documents(paths, TOKENIZER, 16, seed=4)
    backwards = [other(index, 0.0) for index in reversed(range(40))]
    assert [one(index, 0.0) for index in range(40)] == backwards[::-1]
