"""Keeps one stream open to one life of one decode worker. Knows when it breaks, not what travels on it."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse

from gemline.cluster.records import State, WorkerRecord
from gemline.engine.blocks import BlockCounts
from gemline.errors import StaleEpoch, Unavailable
from gemline.gateway.attached import Attached
from gemline.gateway.inbox import Inbox
from gemline.gateway.moves import Reason, reason_of_break
from gemline.gateway.residency import ResidencyIndex, names_of
from gemline.gateway.routing import UNLIMITED, Candidate, Life, has_room
from gemline.gateway.silence import falls_silent
from gemline.gateway.tasks import is_task_canceled
from gemline.internal.v1 import decode_pb2
from gemline.internal.v1.decode_pb2_grpc import DecodeStub
from gemline.rpc.options import OpenChannel

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 1.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
# What a step says of the load is newer than the lease, which is renewed every 2 s, for this long.
LOAD_FRESH_S = 2.5
# Of a worker's places, one in so many is kept for tenants that have nothing running.
_KEPT_SHARE = 8
# Prompts are sent ahead for so many steps: enough that an engine never waits for one, and no more, for they wait there.
_BATCHES_AHEAD = 2
_BATCHES_AHEAD_FIRST = 4  # for a tenant that has nothing running: the engine does not have it wait for the others'


class DecodeLink:
    """One worker, one epoch. `record` is replaced by its owner when the lease says something new."""

    def __init__(
        self,
        record: WorkerRecord,
        gateway_id: str,
        open_channel: OpenChannel,
        silence_timeout_s: float,
        resident: ResidencyIndex[Candidate] | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """What the worker says of its prefix cache goes into `resident`; `on_change` hears that it may have room."""
        self.record = record
        self._resident = resident
        self._candidate = Candidate(Life(record.worker_id, record.epoch))
        self._gateway_id = gateway_id
        self._open_channel = open_channel
        self._silence_timeout_s = silence_timeout_s
        self._on_change = on_change
        self._max_running = self._max_batch_tokens = 0  # as it says; 0: not yet
        self._backoff_s = MIN_BACKOFF_S  # before the stream is opened again
        self._attached: Attached | None = None
        self._channel: grpc.aio.Channel | None = None
        self._standing = asyncio.Event()
        self._task = asyncio.create_task(self._keep_attached(), name=f"link to {record.worker_id}")

    async def stop(self) -> None:
        """Close the stream; requests that are still on it are told that the worker is lost."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    @property
    def takes_requests(self) -> bool:
        """Whether a new request may be sent: the stream stands, and a draining worker only finishes what it has."""
        return self._attached is not None and self.record.state is State.READY

    @property
    def num_in_flight(self) -> int:
        """This gateway's requests on the worker."""
        return 0 if self._attached is None else self._attached.num_in_flight

    async def wait_standing(self) -> None:
        """Return once the stream stands."""
        await self._standing.wait()

    def candidate(self) -> Candidate:
        """The worker as routing sees it: always the same one, brought up to date."""
        attached, record = self._attached, self.record
        if attached is not None and time.monotonic() - attached.reported_at_s < LOAD_FRESH_S:
            num_reported, num_submitted = attached.num_reported, attached.num_submitted
        else:
            num_reported, num_submitted = record.num_running + record.num_waiting, 0
        # What we sent since the report counts, or a burst would go to one worker.
        self._candidate.load = max(self.num_in_flight, num_reported + num_submitted)
        return self._candidate

    def has_room(self, num_tokens: int, window: int, *, is_first: bool) -> bool:
        """Whether a prompt of so many tokens would begin soon there, instead of waiting.

        A few places are for tenants that have nothing running (`is_first`): a flood does not shut others out.
        """
        attached, candidate = self._attached, self.candidate()
        if attached is None or not candidate.load or not self._max_running:
            return attached is not None
        kept = 0 if is_first else self._max_running // _KEPT_SHARE
        num_batches = _BATCHES_AHEAD_FIRST if is_first else _BATCHES_AHEAD
        pending = attached.num_pending_tokens
        if candidate.load >= self._max_running - kept or pending >= num_batches * self._max_batch_tokens:
            return False
        return has_room(candidate, num_tokens + pending, window)

    def submit(self, submit: decode_pb2.Submit, num_found: int = 0) -> Inbox:
        """Send a request, of which so many tokens are expected to be cached there.

        Raises Unavailable when the stream does not stand.
        """
        if self._attached is None:
            raise Unavailable("the decode worker is not attached; try again")
        return self._attached.submit(submit, num_found)

    async def answers(self) -> bool:
        """Whether the worker is alive now: one that was just killed may hold its connections open for a while."""
        if self._channel is None:
            return False
        check: grpc.aio.UnaryUnaryMultiCallable[HealthCheckRequest, HealthCheckResponse] = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            await check(HealthCheckRequest(), timeout=PROBE_TIMEOUT_S)
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            if is_task_canceled():
                raise
            return isinstance(error, grpc.aio.AioRpcError) and error.code() is grpc.StatusCode.UNIMPLEMENTED
        return True

    async def _keep_attached(self) -> None:
        while True:
            try:
                await self._attach_once()
            except (Exception, asyncio.CancelledError) as error:  # whatever happens to the stream, the link tries again
                if is_task_canceled():
                    raise
                log.warning("cannot attach to decode worker %s: %s", self.record.worker_id, _reason(error))
                self._backoff_s = min(2 * self._backoff_s, MAX_BACKOFF_S)
            await asyncio.sleep(self._backoff_s * random.uniform(0.5, 1.5))

    async def _attach_once(self) -> None:
        """Attach and hand on what comes, until the stream ends; raises when the worker did not take us."""
        attached = Attached()
        attached.say(decode_pb2.Hello(gateway_id=self._gateway_id, epoch=self.record.epoch))
        async with self._open_channel(self.record.address) as channel:
            responses = aiter(DecodeStub(channel).Attach(attached.outgoing()))
            await self._expect_ready(responses)
            self._attached, self._channel = attached, channel
            self._standing.set()
            self._on_change()
            self._backoff_s = MIN_BACKOFF_S
            reason = Reason.LOST
            try:
                reason = await self._pump(responses, attached)
            finally:
                self._attached = self._channel = None
                self._standing.clear()
                self._forget()
                attached.on_break(reason)
                self._on_change()

    async def _expect_ready(self, responses: AsyncIterator[decode_pb2.AttachResponse]) -> None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(responses, None)
        if first is None:
            raise Unavailable("it closed the stream without a word")
        if first.ready.epoch != self.record.epoch:
            raise StaleEpoch(f"it answers for epoch {first.ready.epoch}, not {self.record.epoch}")
        self._candidate.block_size = first.ready.block_size or 1
        self._max_running, self._max_batch_tokens = first.ready.max_running, first.ready.max_batch_tokens

    def _note(self, step: decode_pb2.Step) -> None:
        """Before its tokens are handed on: whoever asks because of them finds it known."""
        if step.HasField("free"):
            self._candidate.free = BlockCounts(step.free.num_global, step.free.num_local)
        if self._resident is not None and step.HasField("residency"):
            added, removed = names_of(step.residency.added), names_of(step.residency.removed)
            self._resident.update(self._candidate, added, removed)

    def _forget(self) -> None:
        """A stream that is opened anew tells everything anew."""
        self._candidate.free = UNLIMITED
        if self._resident is not None:
            self._resident.leave(self._candidate)

    async def _pump(self, responses: AsyncIterator[decode_pb2.AttachResponse], attached: Attached) -> Reason:
        """Hand on what comes until the stream ends, or the engine stands still; which of them it was."""
        reading = asyncio.create_task(self._read(responses, attached))
        try:
            if not await falls_silent(reading, attached, self._silence_timeout_s):
                return reading.result()
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        # It would take requests and do nothing for them: it is left alone for a while.
        self._backoff_s = self._silence_timeout_s
        log.warning("decode worker %s: no step for %g s", self.record.worker_id, self._silence_timeout_s)
        return Reason.STALLED

    async def _read(self, responses: AsyncIterator[decode_pb2.AttachResponse], attached: Attached) -> Reason:
        broken_by: Exception | None = None
        try:
            async for response in responses:
                self._note(response.step)
                if attached.on_step(response.step):
                    self._on_change()
        except Exception as error:
            broken_by = error
        reason = reason_of_break(broken_by, is_draining=self.record.state is State.DRAINING)
        what = "it closed the stream" if broken_by is None else _reason(broken_by)
        log.warning("stream to decode worker %s is over (%s): %s", self.record.worker_id, reason.value, what)
        return reason


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
