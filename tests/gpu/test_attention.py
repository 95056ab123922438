"""Paged attention at the sizes of the published models, against attention over dense tensors in float64."""

from dataclasses import replace

import pytest
import torch
from interpreted.test_attention import BACKEND, check, check_close, check_fp8, decode
from support.device import DEVICE, IS_INTERPRETED
from support.paged import Case, Paged, attend, build
from support.published import MODELS, Model

from gemline_kernels.scales import Scales

BLOCK_SIZE = 64
WINDOW = MODELS[0].window
EDGES = (1, 31, 32, 33, 63, 64, 65, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW)
DECODING = tuple((1, context) for context in EDGES)
PROMPTS = (
    (WINDOW // 8, WINDOW // 8),
    (3, 3 * WINDOW),
    (WINDOW // 32 + 1, WINDOW + 2),
    (WINDOW // 16 + 1, 3 * WINDOW),
    (2, 2),
)
BATCH = 6 if IS_INTERPRETED else 64
FP8 = Scales(0.1, 0.125)

of_models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
of_windows = pytest.mark.parametrize("window", [None, WINDOW], ids=["global", "local"])


def case_of(model: Model, window: int | None, lengths: tuple[tuple[int, int], ...]) -> Case:
    """Scores of about a third of the cap."""
    return Case(
        lengths,
        window=window,
        scale=model.scale,
        num_heads=model.num_heads,
        num_kv_heads=model.num_groups,
        width=model.head_dim,
        block_size=BLOCK_SIZE,
        dtype=torch.bfloat16,
    )


@of_models
@of_windows
def test_a_mixed_batch_agrees(model: Model, window: int | None) -> None:
    check(case_of(model, window, (*DECODING, *PROMPTS)))


@of_models
@of_windows
@pytest.mark.parametrize("lengths", [DECODING, PROMPTS], ids=["decode", "prefill"])
def test_an_fp8_cache_agrees(model: Model, window: int | None, lengths: tuple[tuple[int, int], ...]) -> None:
    case = case_of(model, window, lengths)
    check_fp8(case, build(case, device=DEVICE), 132, FP8)


@of_models
@of_windows
def test_every_number_of_pieces_agrees(model: Model, window: int | None) -> None:
    case = case_of(model, window, ((1, 3 * WINDOW), (1, 5), (1, WINDOW + 1)))
    paged = build(case, device=DEVICE)
    for num_items in (3, 132, 528, 3000):
        check_close(case, paged, decode(case, paged, num_items))


@of_models
def test_pieces_of_a_fixed_size_give_the_same_bits_whatever_is_beside(model: Model) -> None:
    case = case_of(model, None, ((1, WINDOW), (1, 3 * WINDOW)))
    paged = build(case, device=DEVICE)
    alone = Paged(paged.query_THK[:1], paged.dense[:1], paged.keys_NSGK, paged.values_NSGK, paged.block_table_BP[:1])
    together = decode(case, paged, 600, chunk=8)
    assert together[0].equal(decode(replace(case, lengths=case.lengths[:1]), alone, 600, chunk=8)[0])


@of_models
@of_windows
def test_a_large_batch_of_any_lengths_agrees_and_always_gives_the_same_bits(model: Model, window: int | None) -> None:
    lengths = torch.randint(1, WINDOW + 1, (BATCH,), generator=torch.Generator().manual_seed(0)).tolist()
    case = case_of(model, window, tuple((1, length) for length in lengths))
    paged = build(case, device=DEVICE)
    found = attend(BACKEND, case, paged)
    check_close(case, paged, found)
    assert all(attend(BACKEND, case, paged).equal(found) for _ in range(3))


@of_models
def test_a_prompt_always_gives_the_same_bits(model: Model) -> None:
    case = case_of(model, WINDOW, ((WINDOW // 4, 2 * WINDOW), (WINDOW // 8, WINDOW // 8)))
    paged = build(case, device=DEVICE)
    found = attend(BACKEND, case, paged)
    assert all(attend(BACKEND, case, paged).equal(found) for _ in range(3))


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("lengths", [((1, WINDOW + 1),), ((70, WINDOW + 1),)], ids=["decode", "prefill"])
def test_blocks_beyond_two_to_the_31_values_are_found(lengths: tuple[tuple[int, int], ...]) -> None:
    case = case_of(MODELS[-1], None, lengths)
    paged = build(case, device=DEVICE)
    first = 2**31 // paged.keys_NSGK[0].numel() + 1

    def moved(pool: torch.Tensor) -> torch.Tensor:
        large = torch.full((first + len(pool), *pool.shape[1:]), torch.nan, dtype=pool.dtype, device=DEVICE)
        large[first:] = pool
        return large

    pools = moved(paged.keys_NSGK), moved(paged.values_NSGK)
    far = Paged(paged.query_THK, paged.dense, *pools, paged.block_table_BP + first)
    check_close(case, far, attend(BACKEND, case, far))
