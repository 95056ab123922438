"""Which backend this machine is served best by. Says so once in the log."""

import functools
import logging
from typing import NamedTuple

import torch

from gemline_kernels import portable
from gemline_kernels.backend import Backend
from gemline_kernels.cpu.build import NativeUnavailableError, cpu_flags
from gemline_kernels.native import NativeBackend

_AMX = "amx_tile"

_log = logging.getLogger(__name__)


class Choice(NamedTuple):
    """A backend, why it is this one, and whether a faster one could not be had."""

    backend: Backend
    why: str
    is_fallback: bool


def has_gpu() -> bool:
    """Whether torch sees one: then it is what computes."""
    return torch.cuda.is_available()


@functools.cache
def choice() -> Choice:
    """Our Triton kernels on a GPU. On a CPU our own library with AVX-512, compiled now if need be, else torch's oneDNN.

    Raises ValueError for a GPU that is older than the kernels need.
    """
    if not has_gpu():
        return _on_cpu()
    from gemline_kernels.gpu.support import check_device

    device = torch.device("cuda")
    try:
        from gemline_kernels.gpu import backend
    except ImportError as error:
        why = f"there is a GPU, but Triton cannot be imported (pip install 'gemline[gpu]'): {error}"
        return _on_cpu()._replace(why=why, is_fallback=True)
    check_device(device)
    return Choice(backend, f"compiled for {torch.cuda.get_device_name(device)}", False)


def _on_cpu() -> Choice:
    if _AMX in cpu_flags():
        return Choice(portable, "this CPU has AMX, which torch's own products use", False)
    try:
        return Choice(NativeBackend(), "compiled for this CPU", False)
    except NativeUnavailableError as error:
        return Choice(portable, f"the faster native one is not available: {error}", True)


@functools.cache
def choose() -> Backend:
    """The backend of `choice`; the reason goes into the log, as a warning when it is a fallback."""
    backend, why, is_fallback = choice()
    _log.log(logging.WARNING if is_fallback else logging.INFO, "backend %s: %s", backend.name, why)
    return backend
