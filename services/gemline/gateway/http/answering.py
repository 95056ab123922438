"""Runs one generation request to its end on one connection: as one JSON object, or as server-sent events."""

import logging
import time
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gemline.errors import GemlineError, InternalError
from gemline.gateway.http.boundary import internal_error
from gemline.gateway.http.choices import Choices, Numbered, open_choices
from gemline.gateway.http.connection import while_connected
from gemline.gateway.http.errors import error_body
from gemline.gateway.http.forms import AnswerForm, AnswerHead
from gemline.gateway.http.interface import Generator
from gemline.gateway.http.responses import json_response
from gemline.gateway.http.writers import DONE, ChunkWriter, WholeWriter
from gemline.gateway.requests import GenerationRequest, Tenant, Usage

_EVENT_STREAM: Message = {
    "type": "http.response.start",
    "status": 200,
    "headers": [
        (b"content-type", b"text/event-stream; charset=utf-8"),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold the events back
    ],
}
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Order:
    """What one HTTP request asks for: one generation request for each choice, n in a row for each prompt."""

    request_id: str
    model: str
    requests: tuple[GenerationRequest, ...]
    num_prompts: int
    service_tier: str  # in which it is served, whatever it asked for
    stream: bool
    with_usage: bool  # in the stream
    traceparent: str


class AnswerResponse(Response):
    """An answer that is generated while it is sent, and cancelled at once when its client leaves.

    Nothing is sent before the first piece: until then an error is an ordinary HTTP answer, raised to the layers above.
    After it an error is one last event, without [DONE]: OpenAI's clients take a stream that just ends for whole.
    """

    def __init__(self, generator: Generator, tenant: Tenant, order: Order, form: AnswerForm) -> None:
        super().__init__()
        self._generator = generator
        self._tenant = tenant
        self._order = order
        self._form = form
        self._num_choices = len(order.requests)
        answer_id = form.id_prefix + order.request_id.removeprefix("req_")
        self._head = AnswerHead(answer_id, int(time.time()), order.model, order.service_tier)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Generate and send."""
        work = self._streamed(send) if self._order.stream else self._whole()
        try:
            last = await while_connected(work, receive)
        except ClientDisconnect:
            return
        # Outside of `while_connected`: a server reports a finished response as a disconnect.
        await last(scope, receive, send)

    async def _whole(self) -> ASGIApp:
        writer, tally = WholeWriter(self._form, self._head, self._num_choices), self._tally()
        choices = await self._open()
        try:
            while (numbered := await choices.next()) is not None:
                index, piece = numbered
                writer.piece(index, piece)
                tally.add(index, piece.usage)
        finally:
            await choices.aclose()
        return json_response(writer.whole(tally.total()))

    async def _streamed(self, send: Send) -> ASGIApp:
        choices = await self._open()
        try:
            first = await choices.next()
            await send(dict(_EVENT_STREAM))
            return _end_of_body(await self._events(first, choices, send))
        finally:
            await choices.aclose()

    async def _events(self, numbered: Numbered | None, choices: Choices, send: Send) -> bytes:
        """Send the events of that piece and of all that follow; returns those that end the stream."""
        writer = ChunkWriter(self._form, self._head, self._num_choices, with_usage=self._order.with_usage)
        tally = self._tally()
        try:
            while numbered is not None:
                index, piece = numbered
                tally.add(index, piece.usage)
                events = writer.piece(index, piece)
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
                numbered = await choices.next()
            usage = tally.total()
            return (writer.usage(usage) if self._order.with_usage else b"") + DONE
        except GemlineError as error:
            return _error_event(error)
        except Exception:
            _log.exception("request %s failed", self._order.request_id)
            return _error_event(internal_error(self._order.request_id))

    async def _open(self) -> Choices:
        order = self._order
        return await open_choices(self._generator, self._tenant, order.requests, traceparent=order.traceparent)

    def _tally(self) -> "_Tally":
        return _Tally(self._num_choices, self._num_choices // self._order.num_prompts)


class _Tally:
    """Adds up usage: every answer's tokens, every prompt's once."""

    def __init__(self, num_choices: int, choices_per_prompt: int) -> None:
        self._num_choices = num_choices
        self._choices_per_prompt = choices_per_prompt
        self._usages: dict[int, Usage] = {}

    def add(self, index: int, usage: Usage | None) -> None:
        if usage is not None:
            self._usages[index] = usage

    def total(self) -> Usage:
        """Raises InternalError when an answer stopped without its last piece."""
        if len(self._usages) < self._num_choices:
            raise InternalError("the answer stopped before its end")
        firsts = range(0, self._num_choices, self._choices_per_prompt)
        return Usage(
            prompt_tokens=sum(self._usages[index].prompt_tokens for index in firsts),
            completion_tokens=sum(usage.completion_tokens for usage in self._usages.values()),
            cached_tokens=sum(self._usages[index].cached_tokens for index in firsts),
        )


def _error_event(error: GemlineError) -> bytes:
    return b"data: " + error_body(error) + b"\n\n"


def _end_of_body(body: bytes) -> ASGIApp:
    async def end(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return end
