"""What a streamed answer has said so far: the half that the sync and the async stream share. Does no I/O."""

from collections.abc import Iterable

from gemline.client import responses
from gemline.client.responses import StreamResponse
from gemline.client.types import Completion, Piece, PositionLogprobs, ToolCall, Usage
from gemline.errors import InternalError


class Answer:
    """Grows by one response at a time; reads the same during the stream and after it."""

    def __init__(self) -> None:
        self._request_id: str | None = None
        self._texts: list[str] = []
        self._logprobs: list[PositionLogprobs] = []
        self._calls: dict[int, ToolCall] = {}
        self._last: Piece | None = None

    @property
    def request_id(self) -> str | None:
        """The gateway's name for this request; None until it has answered."""
        return self._request_id

    @property
    def text(self) -> str:
        """All the text so far."""
        return "".join(self._texts)

    @property
    def logprobs(self) -> tuple[PositionLogprobs, ...]:
        """Log-probabilities so far, when asked for."""
        return tuple(self._logprobs)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Calls of functions so far; the last one's arguments may lack their end."""
        return tuple(self._calls.values())

    @property
    def finish_reason(self) -> str | None:
        """One of "stop", "length" and "tool_calls"; None while it goes on, and for good when it was canceled."""
        return self._last.finish_reason if self._last else None

    @property
    def usage(self) -> Usage | None:
        """Tokens of this request; None until the last piece."""
        return self._last.usage if self._last else None

    @property
    def band(self) -> str | None:
        """In which it was served: "priority", "default" or "batch"; None until the last piece."""
        return self._last.band if self._last else None

    def _add(self, response: StreamResponse) -> Piece:
        self._request_id = response.request_id or self._request_id
        self._last = piece = responses.piece(response)
        self._texts.append(piece.text)
        self._logprobs.extend(piece.logprobs)
        for delta in piece.tool_calls:
            known = self._calls.get(delta.index, ToolCall("", "", ""))
            self._calls[delta.index] = ToolCall(
                known.id or delta.id, known.name or delta.name, known.arguments + delta.arguments
            )
        return piece

    def _note_request_id(self, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        """Learn it from initial or trailing metadata: a call that fails has no response to hold it."""
        found = [value for key, value in metadata if key == "x-request-id" and isinstance(value, str)]
        self._request_id = found[-1] if found else self._request_id

    def _check_finished(self) -> None:
        """A stream that ends cleanly without its last piece is no whole answer: never take it for one."""
        if self.finish_reason is None:
            raise InternalError(f"the stream of request {self._request_id} ended before its answer did")


def completion(answer: Answer) -> Completion:
    """All of an answer that has ended."""
    if answer.finish_reason is None or answer.usage is None:
        raise InternalError(f"the answer to request {answer.request_id} has not ended")
    return Completion(
        answer.request_id or "",
        answer.text,
        answer.finish_reason,
        answer.usage,
        answer.logprobs,
        answer.tool_calls,
        answer.band,
    )
