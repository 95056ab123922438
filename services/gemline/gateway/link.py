"""Keeps one stream open to one life of one decode worker. Knows when it breaks, not what travels on it."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable

import grpc

from gemline.cluster.records import State, WorkerRecord
from gemline.errors import StaleEpoch, Unavailable, WorkerLost
from gemline.gateway.attached import Attached
from gemline.gateway.inbox import Inbox
from gemline.gateway.routing import Candidate
from gemline.gateway.tasks import is_task_canceled
from gemline.internal.v1 import decode_pb2
from gemline.internal.v1.decode_pb2_grpc import DecodeStub

log = logging.getLogger(__name__)

HELLO_TIMEOUT_S = 5.0
MIN_BACKOFF_S, MAX_BACKOFF_S = 0.05, 1.0
# What a step says of the load is newer than the lease, which is renewed every 2 s, for this long.
LOAD_FRESH_S = 2.5

OpenChannel = Callable[[str], grpc.aio.Channel]


class DecodeLink:
    """One worker, one epoch. `record` is replaced by its owner when the lease says something new."""

    def __init__(self, record: WorkerRecord, gateway_id: str, open_channel: OpenChannel) -> None:
        self.record = record
        self._gateway_id = gateway_id
        self._open_channel = open_channel
        self._attached: Attached | None = None
        self._standing = asyncio.Event()
        self._task = asyncio.create_task(self._keep_attached(), name=f"link to {record.worker_id}")

    async def stop(self) -> None:
        """Close the stream; requests that are still on it fail with WorkerLost."""
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
        """The worker as routing sees it."""
        attached, record = self._attached, self.record
        if attached is not None and time.monotonic() - attached.reported_at_s < LOAD_FRESH_S:
            num_reported, num_submitted = attached.num_reported, attached.num_submitted
        else:
            num_reported, num_submitted = record.num_running + record.num_waiting, 0
        return Candidate(record.worker_id, num_reported, num_submitted, self.num_in_flight)

    def submit(self, submit: decode_pb2.Submit) -> Inbox:
        """Send a request; raises Unavailable when the stream does not stand."""
        if self._attached is None:
            raise Unavailable("the decode worker is not attached; try again")
        return self._attached.submit(submit)

    async def _keep_attached(self) -> None:
        backoff_s = MIN_BACKOFF_S
        while True:
            try:
                await self._attach_once()
                backoff_s = MIN_BACKOFF_S  # it stood for a while
            except (Exception, asyncio.CancelledError) as error:  # whatever happens to the stream, the link tries again
                if is_task_canceled():
                    raise
                log.warning("cannot attach to decode worker %s: %s", self.record.worker_id, _reason(error))
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.5))

    async def _attach_once(self) -> None:
        """Attach and hand on what comes, until the stream ends; raises when the worker did not take us."""
        attached = Attached()
        attached.say(decode_pb2.Hello(gateway_id=self._gateway_id, epoch=self.record.epoch))
        async with self._open_channel(self.record.address) as channel:
            responses = aiter(DecodeStub(channel).Attach(attached.outgoing()))
            await self._expect_ready(responses)
            self._attached = attached
            self._standing.set()
            try:
                await self._pump(responses, attached)
            finally:
                self._attached = None
                self._standing.clear()
                attached.on_break(self._what_broke())

    async def _expect_ready(self, responses: AsyncIterator[decode_pb2.AttachResponse]) -> None:
        async with asyncio.timeout(HELLO_TIMEOUT_S):
            first = await anext(responses, None)
        if first is None:
            raise Unavailable("it closed the stream without a word")
        if first.ready.epoch != self.record.epoch:
            raise StaleEpoch(f"it answers for epoch {first.ready.epoch}, not {self.record.epoch}")

    async def _pump(self, responses: AsyncIterator[decode_pb2.AttachResponse], attached: Attached) -> None:
        try:
            async for response in responses:
                attached.on_step(response.step)
        except Exception as error:
            log.warning("stream to decode worker %s broke: %s", self.record.worker_id, _reason(error))
        else:
            log.info("decode worker %s closed the stream", self.record.worker_id)

    def _what_broke(self) -> Unavailable:
        """For a worker that was on its way out no request is to blame: what came too late for it is only refused."""
        if self.record.state is State.DRAINING:
            return Unavailable("the worker that held this request has left; send the request again")
        return WorkerLost("the worker that held this request was lost; send the request again")


def _reason(error: BaseException) -> str:
    if isinstance(error, grpc.aio.AioRpcError):
        return f"{error.code().name}: {error.details()}"
    return f"{type(error).__name__}: {error}"
