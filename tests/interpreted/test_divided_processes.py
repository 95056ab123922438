"""Ranks in processes of their own, over torch's collectives: gloo where kernels are interpreted, NCCL on GPUs."""

from interpreted.test_divided_engine import BLOCKS, SMALL, Answer, answers, check
from support.divided import use_on_rank, whole_engine
from support.rank_processes import in_processes, num_devices

from gemline.engine.ranks import TorchRanks
from gemline_kernels.gpu import backend


def answers_of(ranks: TorchRanks) -> list[Answer] | None:
    """In a rank's process; of rank 0 alone."""
    return use_on_rank(ranks, SMALL, answers, BLOCKS, backend)


def test_ranks_in_processes_answer_as_one_device_does() -> None:
    first, *others = in_processes(num_devices(), answers_of)
    assert not any(others)
    check(first, answers(whole_engine(SMALL, BLOCKS, backend)))
