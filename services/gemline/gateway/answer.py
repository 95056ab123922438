"""One answer as its reader sees it: an iterator of pieces that can be given up at any time. Knows no HTTP, no gRPC."""

from types import TracebackType
from typing import Protocol, Self

from gemline.errors import GemlineError, InternalError
from gemline.gateway.account import Account
from gemline.gateway.allowance import Ended
from gemline.gateway.assemble import Assembler
from gemline.gateway.inbox import Delivery
from gemline.gateway.metrics import CANCELED, Observation
from gemline.gateway.requests import Piece


class Source(Protocol):
    """Where the answer's tokens come from."""

    async def take(self) -> Delivery:
        """What is new; raises the request's error. Nothing once it was canceled."""

    def cancel(self) -> None:
        """Nobody reads on; harmless after the end."""


class Answer:
    """An async iterator of Piece; the last one has finish_reason and usage.

    Errors of gemline.errors are raised from iteration. Whoever stops reading early calls `aclose`, or uses the answer
    as an async context manager: the worker then frees the request's blocks within one step.
    """

    def __init__(
        self,
        request_id: str,
        prompt_tokens: int,
        source: Source,
        assembler: Assembler,
        observation: Observation,
        account: Account,
    ) -> None:
        self.request_id = request_id
        self.prompt_tokens = prompt_tokens
        self._source = source
        self._assembler = assembler
        self._observation = observation
        self._account = account
        self._is_open = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        while self._is_open:
            try:
                delivery = await self._source.take()
                piece = self._assembler.push(delivery)
            except GemlineError as error:
                self._end(error.code, error)
                raise
            except Exception as error:
                self._end(InternalError.code, error)
                raise
            if delivery.token_ids:
                self._observation.delivered(len(delivery.token_ids))
                self._account.delivered(len(delivery.token_ids))
            if piece is not None:
                if piece.finish_reason is not None:
                    self._end(piece.finish_reason)
                return piece
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Give up an answer that has not ended. Never waits, never fails, may be called again."""
        self._end(CANCELED)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _end(self, outcome: str, error: Exception | None = None) -> None:
        if self._is_open:
            self._is_open = False
            self._source.cancel()  # a stop string ends the answer while the worker goes on
            self._observation.end(outcome, error)
            self._account.end(self._ended(outcome))

    def _ended(self, outcome: str) -> Ended:
        """What is billed: nothing where we failed before the first token, else the prompt and what was delivered."""
        of_answer = self._assembler
        prompt_tokens = self.prompt_tokens if of_answer.num_tokens or outcome == CANCELED else 0
        return Ended(outcome, prompt_tokens, of_answer.num_cached, of_answer.num_shown)
