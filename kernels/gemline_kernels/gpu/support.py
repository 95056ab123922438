"""What the Triton kernels can compute, said before the first request needs it."""

from collections.abc import Sequence

import torch

MIN_CAPABILITY = (9, 0)  # Hopper: what the kernels are compiled and tuned for
HEAD_WIDTHS = (16, 32, 64, 128, 256)
BLOCK_SIZE_STEP = 16  # positions: the least that a tile of keys has
MAX_CAP = 60.0  # e^cap, times a context of keys, must stay within float32 and bfloat16
DTYPES = (torch.bfloat16, torch.float32)


def check_shape(dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    """Raises ValueError, naming what is supported, for shapes that no kernel was written for."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype {_name(dtype)} is not supported on a GPU; it must be {_any_of(map(_name, DTYPES))}")
    if head_dim not in HEAD_WIDTHS:
        raise ValueError(f"head_dim {head_dim} is not supported on a GPU; it must be {_any_of(map(str, HEAD_WIDTHS))}")
    if block_size < 1 or block_size % BLOCK_SIZE_STEP:
        raise ValueError(f"block size {block_size} is not supported on a GPU; it must be a multiple of 16")


def check_device(device: torch.device) -> None:
    """Raises ValueError for a GPU older than the kernels need."""
    capability = torch.cuda.get_device_capability(device)
    if capability < MIN_CAPABILITY:
        raise ValueError(
            f"{torch.cuda.get_device_name(device)} has compute capability {_dotted(capability)};"
            f" the kernels need {_dotted(MIN_CAPABILITY)} (Hopper: H100, H200) or newer; with an empty"
            " CUDA_VISIBLE_DEVICES the CPU computes"
        )


def upload(values: Sequence[object], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The host's numbers on the device, behind what is queued there: the host waits for nothing."""
    if device.type != "cuda":
        return torch.tensor(values, dtype=dtype, device=device)
    return torch.tensor(values, dtype=dtype, pin_memory=True).to(device, non_blocking=True)


def num_processors(device: torch.device) -> int:
    """Streaming multiprocessors of a GPU; a handful where kernels are interpreted."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def is_max_free(cap: float) -> bool:
    """Whether scores under that cap need no running maximum."""
    return cap <= MAX_CAP


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _any_of(names: "map[str]") -> str:
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last
