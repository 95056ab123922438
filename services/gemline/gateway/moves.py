"""Why a request leaves a worker before its end, and what the end of a worker's stream says of that."""

from __future__ import annotations  # grpc's generic classes take their parameters in the type stubs alone

from enum import Enum

import grpc.aio

from gemline.errors import GemlineError, StaleEpoch, Unavailable, WorkerLost
from gemline.rpc.status import CODE_KEY, from_rpc_error


class Reason(Enum):
    """Of a move to another worker."""

    LOST = "lost"  # the worker died, or its connection broke
    FROZEN = "frozen"  # it answers no pings
    STALLED = "stalled"  # it answers pings, but its engine stands still
    DRAINED = "drained"  # it goes away and said so; no request is to blame
    REFUSED = "refused"  # it did not take the request: its queue is full, or it goes away

    @property
    def is_loss(self) -> bool:
        """Whether the worker was taken by surprise."""
        return self in (Reason.LOST, Reason.FROZEN, Reason.STALLED)

    @property
    def may_be_caused(self) -> bool:
        """Whether a request can have done it: none keeps a process from answering pings."""
        return self in (Reason.LOST, Reason.STALLED)


def reason_of_break(error: BaseException | None, *, is_draining: bool) -> Reason:
    """Why a worker's stream ended with `error`, or in order; `is_draining` is what the worker's lease said last.

    A worker that ends the stream in its own words is alive: it drains, or its lease is over.
    """
    if error is None or is_draining:
        return Reason.DRAINED
    if not isinstance(error, grpc.aio.AioRpcError):
        return Reason.LOST
    if "ping timeout" in (error.details() or ""):  # gRPC has no status of its own for it
        return Reason.FROZEN
    return Reason.DRAINED if _said_goodbye(error) else Reason.LOST


def error_of_break(reason: Reason) -> Unavailable:
    """What a request on the broken stream ends with, unless it goes on elsewhere."""
    match reason:
        case Reason.DRAINED:
            return Unavailable("the worker that held this request has left")
        case Reason.FROZEN | Reason.STALLED:
            return WorkerLost("the worker that held this request stood still")
        case _:
            return WorkerLost("the worker that held this request was lost")


def reason_of_return(error: GemlineError) -> Reason:
    """Why a worker gave a request back with `error` while its stream stands."""
    return Reason.LOST if isinstance(error, WorkerLost) else Reason.REFUSED


def _said_goodbye(error: grpc.aio.AioRpcError) -> bool:
    has_code = any(key == CODE_KEY for key, _ in error.trailing_metadata() or ())
    return has_code and isinstance(from_rpc_error(error), Unavailable | StaleEpoch)
