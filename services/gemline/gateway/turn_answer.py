"""The answer to one turn of a session: the core's answer, whose last piece comes when the session has the turn."""

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from gemline.cluster.session_records import Turn
from gemline.gateway.answer import Answer
from gemline.gateway.recording import Recording
from gemline.gateway.requests import Piece
from gemline.gateway.routing import Life
from gemline.gateway.turns import Turns

Save = Callable[[list[int], Life | None], Awaitable[None]]


class TurnAnswer:
    """An async iterator of Piece. Text is handed out before the session is asked to keep it; the end is not.

    An answer that fails, or is closed before its last piece, leaves the session as it was. When the turn cannot be
    saved, the error stands in place of the last piece.
    """

    def __init__(self, answer: Answer, recording: Recording, turn: Turn, turns: Turns, save: Save) -> None:
        """`save` takes what the transcript grows by, and the worker that has it."""
        self.request_id = answer.request_id
        self._answer = answer
        self._recording = recording
        self._turn = turn
        self._turns = turns
        self._save = save
        self._texts: list[str] = []
        self._last: Piece | None = None
        self._is_open = True

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Piece:
        if not self._is_open:
            raise StopAsyncIteration
        piece = self._last or await self._next()
        if piece.finish_reason is None:
            return piece
        if piece.text or piece.logprobs or piece.calls:
            self._last = piece._replace(text="", logprobs=(), calls=())
            return piece._replace(finish_reason=None, usage=None)
        self._is_open = False
        await self._save(self._new_ids(piece), self._recording.life)
        return piece

    async def aclose(self) -> None:
        """Give up an answer that has not ended. Never waits, never fails, may be called again."""
        await self._answer.aclose()
        if self._is_open:
            self._is_open = False
            self._turns.abandon(self._turn)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _next(self) -> Piece:
        try:
            piece = await anext(self._answer)
        except Exception:
            self._is_open = False
            await self._turns.release(self._turn)
            raise
        self._texts.append(piece.text)
        return piece

    def _new_ids(self, last: Piece) -> list[int]:
        """The prompt's ids that the session does not have yet, and the answer's."""
        num_tokens = 0 if last.usage is None else last.usage.completion_tokens
        answer_ids = self._recording.turn_ids(num_tokens, "".join(self._texts), last.finish_reason or "")
        return [*self._recording.prompt_ids[self._turn.record.num_tokens :], *answer_ids]
