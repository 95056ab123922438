"""The GPUs of this machine, as its environment lets us see them, and how engines share them. Loads no driver."""

from collections.abc import Mapping
from pathlib import Path

from gemline.errors import ConfigurationError

_DRIVER = Path("/proc/driver/nvidia/gpus")
VARIABLE = "CUDA_VISIBLE_DEVICES"


def visible_gpus(environment: Mapping[str, str], driver: Path = _DRIVER) -> tuple[str, ...]:
    """By the names that CUDA_VISIBLE_DEVICES takes; those that it names, if it is set."""
    if (named := environment.get(VARIABLE)) is not None:
        return tuple(name for part in named.split(",") if (name := part.strip()) not in ("", "-1"))
    try:
        return tuple(str(index) for index, _ in enumerate(driver.iterdir()))
    except OSError:
        return ()


def check_enough(num_ranks: Mapping[str, int], num_gpus: int) -> None:
    """Of each role's divided engines: each of their ranks takes a whole one. Raises ConfigurationError, naming both
    numbers, when there are GPUs and they are too few; Ray would wait for more.
    """
    if 0 < num_gpus < (needed := sum(num_ranks.values())):
        told = ", ".join(f"{role} {number}" for role, number in num_ranks.items())
        raise ConfigurationError(
            f"tensor_parallel: the ranks need {needed} GPUs ({told}), {num_gpus} can be seen; with "
            "CUDA_VISIBLE_DEVICES= the CPU computes",
            param="tensor_parallel",
        )


def share_of_gpu(num_engines: int, num_gpus: int) -> float:
    """How much of one each engine may take: all, unless engines are more than GPUs. Four digits, as Ray counts."""
    if num_gpus == 0:
        return 1.0
    num_on_one = -(-num_engines // num_gpus)
    return int(10_000 / num_on_one) / 10_000
