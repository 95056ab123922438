"""Triton's sampler against the engine's and against the distribution itself."""

from dataclasses import dataclass

import pytest
import torch
from support.device import DEVICE

from gemline.engine.params import SamplingParams
from gemline.engine.sampling import SampleRow
from gemline.engine.sampling import sample as engine_sample
from gemline_kernels.gpu.sampling import Choices, sample
from gemline_kernels.vocabulary import Vocabulary


@dataclass(frozen=True)
class Row:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0


def choices_of(rows: list[Row]) -> Choices:
    def column(name: str, dtype: torch.dtype) -> torch.Tensor:
        return torch.tensor([getattr(row, name) for row in rows], dtype=dtype, device=DEVICE)

    seeds = [row.seed - 2**64 if row.seed >= 2**63 else row.seed for row in rows]
    return Choices(
        column("temperature", torch.float32),
        column("top_k", torch.int32),
        column("top_p", torch.float32),
        column("min_p", torch.float32),
        torch.tensor(seeds, device=DEVICE),
        column("position", torch.int64),
    )


def choose(
    logits_BV: torch.Tensor, rows: list[Row], chunk: int = 64, vocabulary: Vocabulary | None = None
) -> list[int]:
    """With a vocabulary the logits are of a rank's own tokens."""
    truncates = any(row.top_k or row.top_p < 1 for row in rows)
    tokens: list[int] = sample(
        logits_BV.to(DEVICE), choices_of(rows), truncates=truncates, chunk=chunk, vocabulary=vocabulary
    ).tolist()
    return tokens


def engines(logits_BV: torch.Tensor, rows: list[Row]) -> list[int]:
    """The same by the engine on the CPU."""
    asked = [
        SampleRow(
            SamplingParams(
                max_tokens=1, temperature=r.temperature, top_k=r.top_k, top_p=r.top_p, min_p=r.min_p, seed=r.seed
            ),
            r.position,
        )
        for r in rows
    ]
    return [-1 if found is None else found.token_id for found in engine_sample(logits_BV, asked)]


@pytest.mark.parametrize(
    "row",
    [
        Row(),
        Row(temperature=0.0),
        Row(temperature=0.3),
        Row(temperature=1e-40),
        Row(temperature=3.0),
        Row(top_k=1),
        Row(top_k=7),
        Row(top_k=1000),
        Row(top_p=0.9),
        Row(top_p=1e-9),
        Row(top_p=0.999999),
        Row(min_p=0.1),
        Row(min_p=1.0),
        Row(top_k=50, top_p=0.8),
        Row(top_k=50, top_p=0.8, min_p=0.02, temperature=1.7),
    ],
    ids=str,
)
def test_the_engine_on_a_cpu_chooses_the_same(row: Row) -> None:
    torch.manual_seed(0)
    rows = [Row(**row.__dict__ | {"seed": 2**64 - 1 - i, "position": 2**33 + 5 * i}) for i in range(6)]
    logits_BV = torch.randn(len(rows), 300) * 4
    assert choose(logits_BV, rows) == engines(logits_BV, rows)


def test_rows_of_all_kinds_side_by_side_choose_as_each_alone() -> None:
    torch.manual_seed(0)
    rows = [Row(seed=1), Row(temperature=0.0), Row(top_k=3, seed=2), Row(top_p=0.5, seed=3), Row(min_p=0.3, seed=4)]
    logits_BV = torch.randn(5, 500) * 3
    alone = [choose(logits_BV[i : i + 1], rows[i : i + 1])[0] for i in range(5)]
    assert choose(logits_BV, rows) == alone == choose(logits_BV, rows, chunk=512)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_finite_maximum_has_no_token_and_harms_no_other(bad: float) -> None:
    logits_BV = torch.randn(3, 100)
    logits_BV[1] = -torch.inf
    logits_BV[1, 70] = bad
    tokens = choose(logits_BV, [Row(top_k=5), Row(top_p=0.5), Row(temperature=0.0)])
    assert tokens[1] == -1
    assert tokens == engines(logits_BV, [Row(top_k=5), Row(top_p=0.5), Row(temperature=0.0)])


def test_of_equal_logits_the_first_are_likeliest() -> None:
    logits_BV = torch.zeros(12, 50)
    assert choose(logits_BV, [Row(temperature=0.0)] * 12) == [0] * 12
    kept = choose(logits_BV, [Row(top_k=24, seed=seed) for seed in range(12)], chunk=16)
    assert 16 <= max(kept) < 24  # beyond the first chunk
    ahead_BV = logits_BV.clone()
    ahead_BV[:, 49] = 0.5
    assert set(choose(ahead_BV, [Row(top_k=3, seed=seed) for seed in range(12)], chunk=64)) == {0, 1, 49}
    assert max(choose(logits_BV, [Row(top_p=0.48, seed=seed) for seed in range(12)], chunk=16)) < 24


def test_masked_tokens_are_never_drawn() -> None:
    logits_BV = torch.full((12, 130), -torch.inf)
    logits_BV[:, 128:] = 1.0
    assert set(choose(logits_BV, [Row(seed=seed) for seed in range(12)])) == {128, 129}


def test_tokens_come_as_often_as_they_are_likely() -> None:
    """Chi-square over 120 draws of 6 tokens: 20.5 is exceeded once in a thousand."""
    torch.manual_seed(0)
    logits_V = torch.randn(6)
    number = 120
    drawn = torch.tensor(choose(logits_V.repeat(number, 1), [Row(seed=3, position=i) for i in range(number)], chunk=16))
    expected = logits_V.double().softmax(0) * number
    assert float(((drawn.bincount(minlength=6) - expected).square() / expected).sum()) < 20.5
