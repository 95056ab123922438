"""What is asked of a machine before the ranks of an engine are started."""

import pytest

from gemline.errors import ConfigurationError
from gemline.rank_process import check_gpus


@pytest.mark.parametrize(("num_ranks", "num_gpus"), [(1, 0), (4, 0), (1, 1), (2, 2), (2, 8)])
def test_each_rank_has_a_gpu_or_none_has(num_ranks: int, num_gpus: int) -> None:
    check_gpus(num_ranks, num_gpus)


@pytest.mark.parametrize(("num_ranks", "num_gpus"), [(2, 1), (8, 4)])
def test_too_few_gpus_are_refused_with_both_numbers(num_ranks: int, num_gpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"tensor_parallel {num_ranks} needs {num_ranks} GPUs, {num_gpus} can"):
        check_gpus(num_ranks, num_gpus)
