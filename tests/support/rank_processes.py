"""Ranks that are processes of their own: over NCCL with a GPU for each, over gloo where kernels are interpreted."""

import os
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from support.device import IS_INTERPRETED

from gemline.engine.ranks import TorchRanks

T = TypeVar("T")
_LIMIT = timedelta(minutes=5)  # for one rank to wait for another
_MOST = 4


def num_devices() -> int:
    """How many ranks this machine has devices for, a power of two; 1 of a single GPU's, where NCCL is all the same."""
    if IS_INTERPRETED:
        return 2
    return 1 << min(torch.cuda.device_count(), _MOST).bit_length() - 1


def in_processes(num_ranks: int, work: Callable[[TorchRanks], T]) -> list[T]:
    """What each rank's work gives. Raises what any of them raised."""
    with tempfile.TemporaryDirectory() as place, ProcessPoolExecutor(num_ranks, get_context("spawn")) as pool:
        waiting = [pool.submit(_one, Path(place), rank, num_ranks, work) for rank in range(num_ranks)]
        return [it.result() for it in waiting]


def _one(place: Path, rank: int, num_ranks: int, work: Callable[[TorchRanks], T]) -> T:
    if IS_INTERPRETED:
        from support.triton_bfloat16 import mend_interpreter

        torch.set_num_threads(1)
        mend_interpreter()
    else:
        torch.cuda.set_device(rank)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    backend = "gloo" if IS_INTERPRETED else "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, f"file://{place / 'meeting'}", rank=rank, world_size=num_ranks, timeout=_LIMIT)
    return work(TorchRanks())
