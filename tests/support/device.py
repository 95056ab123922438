"""Where the Triton kernels run in tests: interpreted on the CPU, or compiled on a GPU."""

import os

import torch

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = torch.device("cpu" if IS_INTERPRETED else "cuda")


def why_no_device() -> str:
    """Why kernels can neither be interpreted here nor compiled; empty where they can."""
    if IS_INTERPRETED or torch.cuda.is_available():
        return ""
    return "no NVIDIA GPU; TRITON_INTERPRET=1 runs the same tests at a fraction of the sizes"
