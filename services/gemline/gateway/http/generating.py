"""How a request for an answer may fail, besides the ways in which any request may."""

from gemline.errors import (
    ContextLengthExceeded,
    DeadlineExceeded,
    GemlineError,
    ModelNotAllowed,
    ModelNotFound,
    Overloaded,
    PoisonRequest,
    SessionNotFound,
    TurnNotSaved,
    WorkerLost,
)

READS: tuple[type[GemlineError], ...] = (ContextLengthExceeded, ModelNotAllowed, ModelNotFound)
FAILS = (*READS, DeadlineExceeded, Overloaded, PoisonRequest, WorkerLost)
IN_SESSION = (*FAILS, SessionNotFound, TurnNotSaved)
