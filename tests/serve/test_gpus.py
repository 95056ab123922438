"""GPUs are found without a driver, and shared out so that whoever is on one fits beside the others."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.errors import ConfigurationError
from gemline.serve.gpus import check_enough, share_of_gpu, visible_gpus
from gemline.serve.settings import StackSettings, resolve


@pytest.mark.parametrize(
    ("named", "found"),
    [("", ()), ("0", ("0",)), ("2, 5", ("2", "5")), ("GPU-8f2a,GPU-77", ("GPU-8f2a", "GPU-77")), ("-1", ())],
)
def test_the_variable_says_which_gpus_there_are(named: str, found: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "0000:01:00.0").mkdir()
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": named}, tmp_path) == found


def test_without_it_the_driver_says_how_many(tmp_path: Path) -> None:
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (tmp_path / name).mkdir()
    assert visible_gpus({}, tmp_path) == ("0", "1")
    assert visible_gpus({}, tmp_path / "absent") == ()


@given(st.integers(1, 64), st.integers(1, 16))
def test_no_gpu_is_given_out_more_than_once(num_engines: int, num_gpus: int) -> None:
    share = share_of_gpu(num_engines, num_gpus)
    assert 0 < share <= 1
    most_on_one = -(-num_engines // num_gpus)
    assert share * most_on_one <= 1
    assert share * most_on_one > 0.99


@pytest.mark.parametrize(("ranks", "num_gpus"), [({}, 1), ({"decode": 4}, 0), ({"prefill": 2, "decode": 2}, 4)])
def test_each_rank_that_ray_places_has_a_gpu_or_none_has(ranks: dict[str, int], num_gpus: int) -> None:
    check_enough(ranks, num_gpus)


def test_too_few_gpus_for_the_ranks_are_told_before_ray_waits_for_more() -> None:
    with pytest.raises(ConfigurationError, match=r"ranks need 6 GPUs \(prefill 2, decode 4\), 4 can be seen"):
        check_enough({"prefill": 2, "decode": 4}, 4)


def test_engines_share_the_gpus_of_a_stack() -> None:
    stack = StackSettings(num_prefill=1, num_decode=2)
    shares = [resolve(stack, num_cores=8, num_gpus=number).gpu_share for number in (0, 1, 2, 3, 8)]
    assert shares == [1.0, 0.3333, 0.5, 1.0, 1.0]
