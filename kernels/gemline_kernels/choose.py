"""Which backend this machine is served best by. Says so once in the log."""

import functools
import logging
from typing import NamedTuple

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


@functools.cache
def choice() -> Choice:
    """Our own library on a CPU with AVX-512, compiled now if need be; torch's oneDNN with AMX, and on any other CPU.

    Never fails.
    """
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
