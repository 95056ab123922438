"""What is asked of a machine before the ranks of an engine are started, and what is heard of ranks that end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError
from gemline.rank_group import RankTask, shared_out
from gemline.rank_process import ChildProcesses, check_gpus


@pytest.mark.parametrize(("num_ranks", "num_gpus"), [(1, 0), (4, 0), (1, 1), (2, 2), (2, 8)])
def test_each_rank_has_a_gpu_or_none_has(num_ranks: int, num_gpus: int) -> None:
    check_gpus(num_ranks, num_gpus)


@pytest.mark.parametrize(("num_ranks", "num_gpus"), [(2, 1), (8, 4)])
def test_too_few_gpus_are_refused_with_both_numbers(num_ranks: int, num_gpus: int) -> None:
    with pytest.raises(ConfigurationError, match=f"tensor_parallel {num_ranks} needs {num_ranks} GPUs, {num_gpus} can"):
        check_gpus(num_ranks, num_gpus)


def test_cores_are_shared_out_that_this_process_may_use_and_no_others() -> None:
    """As in a container, whose cpuset leaves it few of a large machine's."""
    (core, *_) = all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        assert shared_out(EngineOptions()).num_threads == 1
    finally:
        os.sched_setaffinity(0, all_cores)
    assert shared_out(EngineOptions(num_threads=6, tensor_parallel=2)).num_threads == 3


# A process of its own: rank 0 stands there for good, in a group that no other test should meet.
ENDS_BEFORE_IT_JOINS = """
import os, queue, threading
from pathlib import Path
from gemline.engine.options import EngineOptions
from gemline.rank_group import RankGroup
from gemline.rank_meeting import Meeting

class Rank:
    def __init__(self, task):
        Meeting.at(task.meeting, 2).arrive(task.rank)

    def last_words(self):
        return "killed"

    def wait(self):
        pass

    def kill(self):
        pass

class Starter:
    address = None

    def check(self, num_ranks):
        pass

    def start(self, task):
        return Rank(task)

heard = queue.SimpleQueue()
group = RankGroup(Path("none"), EngineOptions(tensor_parallel=2), Starter(), heard.put)
threading.Thread(target=group.join, daemon=True).start()
print(heard.get(timeout=20), flush=True)
os._exit(0)
"""


def test_a_rank_that_ends_when_it_has_arrived_and_not_joined_is_heard_of() -> None:
    told = subprocess.run([sys.executable, "-c", ENDS_BEFORE_IT_JOINS], capture_output=True, text=True, check=False)
    assert told.stdout == "rank 1 ended: killed\n", told.stderr


def test_the_last_words_of_a_rank_are_there_as_soon_as_it_has_ended(tmp_path: Path) -> None:
    task = RankTask(1, "tcp://127.0.0.1:nowhere", tmp_path, EngineOptions(tensor_parallel=2))
    child = ChildProcesses().start(task)
    child.wait()
    assert "'nowhere'" in str(child.last_words())
