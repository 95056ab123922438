"""Starts and ends requests: prefilled here or, where somebody else can, there. Knows no gateway."""

import asyncio
import logging
from collections.abc import Callable

from gemline.decode.remote_prefill import RemotePrefill
from gemline.engine.requests import EngineRequest
from gemline.engine_host import EngineHost
from gemline.errors import GemlineError, InternalError
from gemline.telemetry import Attributes, Span, Telemetry

logger = logging.getLogger(__name__)


class Dispatcher:
    """`fail` takes the error of a request that could not be started."""

    def __init__(
        self,
        host: EngineHost,
        remote: RemotePrefill,
        telemetry: Telemetry,
        fail: Callable[[int, GemlineError], None],
    ) -> None:
        self._host = host
        self._remote = remote
        self._telemetry = telemetry
        self._fail = fail
        self._tasks: dict[int, asyncio.Task[None]] = {}  # being started, by seq_id
        self._spans: dict[int, Span] = {}  # of the traced requests, by seq_id

    def start(self, request: EngineRequest, request_id: str, traceparent: str) -> None:
        """Begins a request; returns at once."""
        if traceparent:
            attributes: Attributes = {"gemline.request_id": request_id, "gemline.num_tokens": len(request.token_ids)}
            span = self._spans[request.seq_id] = self._telemetry.span("decode", traceparent, attributes)
            traceparent = span.traceparent
        task = self._tasks[request.seq_id] = asyncio.create_task(self._start(request, request_id, traceparent))
        task.add_done_callback(lambda _: self._tasks.pop(request.seq_id, None))

    def cancel(self, seq_id: int) -> None:
        """Ends a request, whatever its state; its blocks are free within one step."""
        if (task := self._tasks.pop(seq_id, None)) is not None:
            task.cancel()
        self._host.thread.cancel(seq_id)
        self.ended(seq_id)

    def ended(self, seq_id: int) -> None:
        """A request got its last event."""
        if (span := self._spans.pop(seq_id, None)) is not None:
            span.end()

    async def _start(self, request: EngineRequest, request_id: str, traceparent: str) -> None:
        try:
            await self._remote.run(await self._host.constrained(request), request_id, traceparent)
        except GemlineError as error:
            self._fail(request.seq_id, error)
        except Exception:
            logger.exception("request %s could not be started", request_id)
            self._host.thread.cancel(request.seq_id)
            self._fail(request.seq_id, InternalError("this request could not be started"))
