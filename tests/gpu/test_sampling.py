"""Sampling from the published vocabulary, against the engine on the CPU."""

import pytest
import torch
from interpreted.test_sampling import Row, choose, engines
from support.device import DEVICE
from support.published import MODELS

VOCABULARY = MODELS[0].vocab_size
CHUNK = 4096
KINDS = (
    Row(),
    Row(temperature=0.0),
    Row(temperature=0.3),
    Row(top_k=64),
    Row(top_p=0.95),
    Row(min_p=0.05),
    Row(top_k=1000, top_p=0.9, min_p=0.001, temperature=1.3),
)


def logits(num_rows: int) -> torch.Tensor:
    """As capped ones are; few tokens have most of the mass."""
    random = torch.Generator().manual_seed(0)
    return 30.0 * (torch.randn(num_rows, VOCABULARY, generator=random) * 0.25).tanh()


def seeded(row: Row, num_rows: int) -> list[Row]:
    return [Row(**row.__dict__ | {"seed": 2**64 - 1 - i, "position": 2**33 + 5 * i}) for i in range(num_rows)]


@pytest.mark.parametrize("row", KINDS, ids=str)
def test_the_engine_on_a_cpu_chooses_the_same(row: Row) -> None:
    """exp is not the same to the last bit on both: a token at the very edge of a share may be its neighbour."""
    rows = seeded(row, 24)
    pairs = zip(choose(logits(24), rows, CHUNK), engines(logits(24), rows), strict=True)
    assert sum(ours != theirs for ours, theirs in pairs) <= 1


def test_rows_of_all_kinds_side_by_side_choose_as_each_alone_and_always_the_same() -> None:
    rows = [one for kind in KINDS for one in seeded(kind, 9)]
    logits_BV = logits(len(rows)).to(DEVICE)
    together = choose(logits_BV, rows, CHUNK)
    assert choose(logits_BV, rows, CHUNK) == together == choose(logits_BV, rows, CHUNK // 4)
    for i in range(0, len(rows), 10):
        assert choose(logits_BV[i : i + 1], rows[i : i + 1], CHUNK) == together[i : i + 1]


def test_a_row_that_is_not_finite_has_no_token_and_harms_no_other() -> None:
    logits_BV = logits(3)
    logits_BV[1, VOCABULARY - 1] = torch.nan
    rows = seeded(Row(top_p=0.9), 3)
    found = choose(logits_BV, rows, CHUNK)
    assert found[1] == -1
    assert [found[0], found[2]] == choose(logits(3)[[0, 2]], [rows[0], rows[2]], CHUNK)
