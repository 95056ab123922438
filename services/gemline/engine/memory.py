"""How many blocks the pools get, from what is free. The only engine module that reads the machine's state."""

import ctypes
import os
from pathlib import Path

import torch

from gemline.engine.blocks import BlockCounts, num_blocks_for
from gemline.engine.config import Gemma2Config
from gemline.engine.options import EngineOptions
from gemline.errors import ConfigurationError

_CPU_SHARE = 0.25  # of what is free, for keys and values: the rest of the machine has needs too
_GPU_SHARE = 0.9  # what is left is for activations, logits and what graphs hold
_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def size_pools(
    options: EngineOptions, config: Gemma2Config, bytes_per_block: BlockCounts, free_bytes: int, *, is_gpu: bool = False
) -> BlockCounts:
    """The blocks of both pools: as many as asked for, or as a share of the free bytes holds and is of use.

    The local pool is as large as max_running windows, or as the global one if that is smaller. Raises
    ConfigurationError when one full context does not fit.
    """
    if options.num_kv_blocks is not None:
        sizes = _with_local(options.num_kv_blocks, options, config)
        limit_bytes = free_bytes
    else:
        limit_bytes = int(free_bytes * (_GPU_SHARE if is_gpu else _CPU_SHARE))
        sizes = _with_local(_largest(options, config, bytes_per_block, limit_bytes), options, config)
    context_blocks = num_blocks_for(config.max_position_embeddings, options.block_size)
    needed = _with_local(context_blocks, options, config)
    if sizes.num_global < context_blocks:
        given_bytes = limit_bytes if options.num_kv_blocks is None else _bytes(sizes, bytes_per_block)
        raise ConfigurationError(
            f"num_kv_blocks: one context of {config.max_position_embeddings} tokens needs {context_blocks} blocks of"
            f" {options.block_size}, {_bytes(needed, bytes_per_block)} bytes; the pool has {sizes.num_global} blocks,"
            f" {given_bytes} bytes ({free_bytes} bytes are free)"
        )
    if _bytes(sizes, bytes_per_block) > limit_bytes:
        raise ConfigurationError(
            f"num_kv_blocks: {sizes.num_global} blocks need {_bytes(sizes, bytes_per_block)} bytes;"
            f" {limit_bytes} bytes are free"
        )
    return sizes


def max_local_blocks(options: EngineOptions, config: Gemma2Config) -> int:
    """Local blocks that one sequence ever has: the window before its last full block, what it has computed of the next
    one, and a step's tokens.
    """
    num_new = options.block_size - 1 + options.max_batch_tokens
    return num_blocks_for(config.sliding_window - 1, options.block_size) + num_blocks_for(num_new, options.block_size)


def free_memory_bytes(device: torch.device | None = None, gpu_share: float = 1.0) -> int:
    """What this process could still take, of its share of a GPU or by the kernel and its control groups' limits."""
    if device is not None and device.type == "cuda":
        torch.cuda.empty_cache()  # what packing the weights left in torch's own store counts as free too
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        return max(0, min(free_bytes, int(total_bytes * gpu_share) - torch.cuda.memory_reserved(device)))
    return max(0, min([_machine_bytes(), *_group_bytes()]))


def give_back_freed_memory() -> None:
    """Has the C library return what was freed to the kernel.

    Left alone it keeps it: after packing 0.6 GB of weights one matrix at a time, 0.8 GB that nobody used (glibc 2.36).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's own
    if trim is not None:
        trim(0)


def _with_local(num_global: int, options: EngineOptions, config: Gemma2Config) -> BlockCounts:
    return BlockCounts(num_global, min(num_global, options.max_running * max_local_blocks(options, config)))


def _largest(options: EngineOptions, config: Gemma2Config, bytes_per_block: BlockCounts, limit_bytes: int) -> int:
    """The most global blocks that fit the bytes together with their local ones, and that sequences could ever use."""
    most = options.max_running * num_blocks_for(config.max_position_embeddings, options.block_size)
    most_local = _with_local(most, options, config).num_local
    alike = limit_bytes // (bytes_per_block.num_global + bytes_per_block.num_local)
    if alike < most_local:
        return alike
    left_bytes = limit_bytes - most_local * bytes_per_block.num_local
    return min(left_bytes // bytes_per_block.num_global, most) if bytes_per_block.num_global else most


def _bytes(blocks: BlockCounts, bytes_per_block: BlockCounts) -> int:
    return blocks.num_global * bytes_per_block.num_global + blocks.num_local * bytes_per_block.num_local


def _machine_bytes() -> int:
    if not _MEMINFO.exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    lines = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def _group_bytes() -> list[int]:
    """What is left of each version 2 control group's limit that we can see, the file cache not counted."""
    left: list[int] = []
    for directory in _groups():
        limit, current, stat = (directory / f"memory.{name}" for name in ("max", "current", "stat"))
        try:
            if (text := limit.read_text().strip()) != "max":
                cached = dict(line.split() for line in stat.read_text().splitlines())["inactive_file"]
                left.append(int(text) - int(current.read_text()) + int(cached))
        except OSError:
            continue
    return left


def _groups() -> list[Path]:
    try:
        names = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    except OSError:
        return []
    inner = _CGROUP / (names[0] if names else "").lstrip("/")
    return [inner, *(parent for parent in inner.parents if parent.is_relative_to(_CGROUP))]
