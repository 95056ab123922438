"""The processes of a tensor-parallel group on one machine, as rank 0 starts, joins and watches them.

Every other rank is a child that dies with the thread that started it. When one of them ends, whoever asked is told, so
that the whole group goes: what is left of a divided model computes nothing.
"""

import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from gemline import orphan
from gemline.engine.engine import Engine
from gemline.engine.group import follow
from gemline.engine.options import EngineOptions
from gemline.engine.ranks import RanksBroken, TorchRanks
from gemline.errors import ConfigurationError, GemlineError
from gemline_kernels.scales import Scales

_START_LIMIT_S = 300.0
_POLL_S = 0.05
# Ranks wait for each other for as long as nobody asks for anything. A dead one is noticed by its end, not by silence.
_NEVER = timedelta(days=365)

_log = logging.getLogger(__name__)


class RankGroup:
    """Ranks 1 and on, as rank 0 has them."""

    def __init__(self, model_dir: Path, options: EngineOptions, on_death: Callable[[str], None]) -> None:
        """`on_death` hears, in a thread of its own, why a rank ended."""
        self._directory = tempfile.TemporaryDirectory(prefix="gemline-ranks-")
        self._place = Path(self._directory.name)  # no port has to be open for ranks of one machine to meet
        self._children = [_Child(rank, self._place, model_dir, options) for rank in range(1, options.tensor_parallel)]
        self._on_death = on_death
        self._is_over = False

    def join(self) -> TorchRanks:
        """Once all are there. Raises ConfigurationError with a rank's last words when one ends before."""
        limit_s = time.monotonic() + _START_LIMIT_S
        while not all(_mark(self._place, child.rank).exists() for child in self._children):
            for child in self._children:
                if child.process.poll() is not None:
                    raise ConfigurationError(f"rank {child.rank} ended: {child.last_words()}")
            if time.monotonic() > limit_s:
                raise ConfigurationError(f"the ranks were not all there within {_START_LIMIT_S:g} s")
            time.sleep(_POLL_S)
        ranks = _joined(self._place, 0, len(self._children) + 1)
        for child in self._children:
            threading.Thread(target=self._watch, args=(child,), name=f"rank {child.rank}", daemon=True).start()
        return ranks

    def last_words(self) -> str:
        """Of the first rank that ended, if any has."""
        for child in self._children:
            if child.process.poll() is not None:
                return f"rank {child.rank} ended: {child.last_words()}"
        return ""

    def stop(self) -> None:
        """What is left of them."""
        self._is_over = True
        for child in self._children:
            child.process.kill()
            child.process.wait()
        self._directory.cleanup()

    def _watch(self, child: "_Child") -> None:
        child.process.wait()
        if not self._is_over:
            self._on_death(f"rank {child.rank} ended: {child.last_words()}")


class _Child:
    def __init__(self, rank: int, place: Path, model_dir: Path, options: EngineOptions) -> None:
        self.rank = rank
        self._words: list[str] = []
        settings = {"rank": rank, "place": str(place), "model_dir": str(model_dir), "options": asdict(options)}
        self.process = subprocess.Popen(
            orphan.command([sys.executable, "-m", "gemline.rank_group", json.dumps(settings)]),
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        threading.Thread(target=self._listen, name=f"words of rank {rank}", daemon=True).start()

    def last_words(self) -> str:
        """The end of what it wrote."""
        return self._words[-1] if self._words else f"status {self.process.returncode}"

    def _listen(self) -> None:
        for line in self.process.stderr or ():
            if line.strip():
                self._words = [*self._words[-20:], line.strip()]
                _log.info("rank %d: %s", self.rank, line.rstrip())


def load_engine(model_dir: Path, options: EngineOptions, on_loss: Callable[[str], None]) -> Engine:
    """The engine of a checkpoint, whole or as rank 0 of a group. Raises as `Engine.load`.

    `on_loss` hears when the group is broken. To be called in the thread that will run the engine.
    """
    if options.tensor_parallel == 1:
        return Engine.load(model_dir, options)
    check_gpus(options.tensor_parallel, torch.cuda.device_count())
    group = RankGroup(model_dir, options, on_loss)
    try:
        engine = Engine.load(model_dir, shared_out(options), group.join())
    except RanksBroken as error:
        raise ConfigurationError(group.last_words() or str(error)) from error
    except BaseException:
        group.stop()
        raise
    return engine


def check_gpus(num_ranks: int, num_gpus: int) -> None:
    """Raises ConfigurationError, naming both numbers, unless each rank has a GPU, or none has."""
    if 0 < num_gpus < num_ranks:
        raise ConfigurationError(
            f"tensor_parallel {num_ranks} needs {num_ranks} GPUs, {num_gpus} can be seen; with CUDA_VISIBLE_DEVICES= "
            "the CPU computes",
            param="tensor_parallel",
        )


def shared_out(options: EngineOptions) -> EngineOptions:
    """With the cores for one rank of those that share this machine."""
    number = options.num_threads or os.cpu_count() or 1
    return replace(options, num_threads=max(1, number // options.tensor_parallel))


def _joined(place: Path, rank: int, size: int) -> TorchRanks:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, f"file://{place / 'meeting'}", rank=rank, world_size=size, timeout=_NEVER)
    return TorchRanks()


def _mark(place: Path, rank: int) -> Path:
    """A file that is there once the rank is."""
    return place / f"rank-{rank}"


def run_rank(settings: Mapping[str, Any]) -> None:
    """A rank other than 0, in a process of its own."""
    options = EngineOptions(**settings["options"])
    options = replace(options, kv_scales=tuple(Scales(*it) for it in options.kv_scales))
    torch.set_num_threads(shared_out(options).num_threads or 1)
    place, rank = Path(settings["place"]), int(settings["rank"])
    _mark(place, rank).touch()
    ranks = _joined(place, rank, options.tensor_parallel)
    follow(Path(settings["model_dir"]), shared_out(options), ranks)


def main() -> None:
    """`python -m gemline.rank_group SETTINGS`, as rank 0 starts it."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        run_rank(json.loads(sys.argv[1]))
    except (GemlineError, RanksBroken) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
