"""Whether a backend computes what it should on this machine: to be asked before it serves."""

from gemline_kernels.selfcheck.check import check
from gemline_kernels.selfcheck.compare import SelfCheckFailedError

__all__ = ["SelfCheckFailedError", "check"]
