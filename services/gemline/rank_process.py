"""Ranks as processes of one machine: children of rank 0 that die with the thread that started them."""

import json
import logging
import subprocess
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from gemline import orphan
from gemline.engine.options import EngineOptions
from gemline.engine.ranks import RanksBroken
from gemline.errors import ConfigurationError, GemlineError
from gemline.rank_group import RankTask, run_rank
from gemline_kernels.scales import Scales

_LAST_WORDS_S = 2.0

_log = logging.getLogger(__name__)


class ChildProcesses:
    """A `Starter`: every rank is a process on this machine, with a GPU of its own if there are any."""

    address = None

    def check(self, num_ranks: int) -> None:
        """Raises ConfigurationError, naming both numbers, when there are GPUs but fewer than ranks."""
        check_gpus(num_ranks, torch.cuda.device_count())

    def start(self, task: RankTask) -> "Child":
        """To be called in a thread that lives as long as the group."""
        return Child(task)


class Child:
    """A `StartedRank`."""

    def __init__(self, task: RankTask) -> None:
        self._rank = task.rank
        self._words: list[str] = []
        told = asdict(task) | {"model_dir": str(task.model_dir)}
        self._process = subprocess.Popen(
            orphan.command([sys.executable, "-m", "gemline.rank_process", json.dumps(told)]),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        self._listener = threading.Thread(target=self._listen, name=f"words of rank {self._rank}", daemon=True)
        self._listener.start()

    def last_words(self) -> str | None:
        """The end of what it wrote; None while it runs."""
        if self._process.poll() is None:
            return None
        self._listener.join(_LAST_WORDS_S)  # what it wrote may not have been read yet
        return self._words[-1] if self._words else f"status {self._process.returncode}"

    def wait(self) -> None:
        """Until it has ended."""
        self._process.wait()

    def kill(self) -> None:
        """At once; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def _listen(self) -> None:
        for line in self._process.stderr or ():
            if line.strip():
                self._words = [*self._words[-20:], line.strip()]
                _log.info("rank %d: %s", self._rank, line.rstrip())


def check_gpus(num_ranks: int, num_gpus: int) -> None:
    """Raises ConfigurationError, naming both numbers, unless each rank has a GPU, or none has."""
    if 0 < num_gpus < num_ranks:
        raise ConfigurationError(
            f"tensor_parallel {num_ranks} needs {num_ranks} GPUs, {num_gpus} can be seen; with CUDA_VISIBLE_DEVICES= "
            "the CPU computes",
            param="tensor_parallel",
        )


def _task(told: dict[str, Any]) -> RankTask:
    options = EngineOptions(**told["options"])
    options = replace(options, kv_scales=tuple(Scales(*it) for it in options.kv_scales))
    return RankTask(told["rank"], told["meeting"], Path(told["model_dir"]), options)


def main() -> None:
    """`python -m gemline.rank_process TASK`, as rank 0 starts it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run_rank(_task(json.loads(sys.argv[1])))
    except (GemlineError, RanksBroken) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
