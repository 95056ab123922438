"""Calls prefill workers: which one, over which channel, and the frames it sends. Knows no engine and no frame."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from gemline.cluster.records import State, WorkerRecord
from gemline.errors import GemlineError, Unavailable
from gemline.internal.v1.prefill_pb2 import PrefillRequest
from gemline.rpc.options import open_channel
from gemline.rpc.status import from_rpc_error

METHOD = "/gemline.internal.v1.Prefill/Prefill"


class PrefillClient:
    """`workers` gives the prefill workers of our model as they are now.

    A worker that failed is left alone for `rest_s`: until its lease is over it would be picked again and again.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerRecord]],
        revision: str,
        *,
        connect_timeout_s: float = 2.0,
        rest_s: float = 2.0,
    ) -> None:
        self._workers = workers
        self._revision = revision
        self._connect_timeout_s = connect_timeout_s
        self._rest_s = rest_s
        self._channels: dict[str, grpc.aio.Channel] = {}  # by address
        self._num_calls: Counter[str] = Counter()  # in flight, by worker_id
        self._resting_until: dict[tuple[str, int], float] = {}  # monotonic, by worker_id and epoch

    def pick(self) -> WorkerRecord | None:
        """The least loaded ready worker with our weights; None when there is none."""
        now = time.monotonic()
        fit = [
            worker
            for worker in self._workers()
            if worker.state is State.READY
            and worker.model.revision == self._revision
            and self._resting_until.get((worker.worker_id, worker.epoch), now) <= now
        ]
        return min(fit, key=self._load, default=None)

    @asynccontextmanager
    async def call(
        self, worker: WorkerRecord, request: PrefillRequest, traceparent: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The frames of one prefill. Leaving the block ends the call; a failed call raises a GemlineError."""
        self._num_calls[worker.worker_id] += 1
        call = None
        try:
            channel = await self._connected(worker)
            method: grpc.aio.UnaryStreamMultiCallable[PrefillRequest, bytes] = channel.unary_stream(
                METHOD, request_serializer=PrefillRequest.SerializeToString, response_deserializer=None
            )
            call = method(request, metadata=(("traceparent", traceparent),) if traceparent else None)
            yield call.__aiter__()
        except grpc.aio.AioRpcError as error:
            self._rest(worker)
            raise from_rpc_error(error, peer=f"prefill worker {worker.worker_id}") from None
        except GemlineError:
            self._rest(worker)
            raise
        finally:
            self._num_calls[worker.worker_id] -= 1
            if call is not None:
                call.cancel()

    async def close(self) -> None:
        """Ends every call and connection."""
        for channel in self._channels.values():
            await channel.close()
        self._channels.clear()

    async def _connected(self, worker: WorkerRecord) -> grpc.aio.Channel:
        """Without the wait a worker behind a broken network would hold a request until TCP gives up."""
        await self._forget_all_but({known.address for known in self._workers()} | {worker.address})
        channel = self._channels.get(worker.address)
        if channel is None:
            channel = self._channels[worker.address] = open_channel(worker.address)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connected = await _connects(channel)
        except TimeoutError:
            connected = False
        if not connected:
            raise Unavailable(f"prefill worker {worker.worker_id} cannot be reached")
        return channel

    async def _forget_all_but(self, addresses: set[str]) -> None:
        for address in self._channels.keys() - addresses:
            await self._channels.pop(address).close()

    def _load(self, worker: WorkerRecord) -> tuple[int, str]:
        return worker.num_running + worker.num_waiting + self._num_calls[worker.worker_id], worker.worker_id

    def _rest(self, worker: WorkerRecord) -> None:
        now = time.monotonic()
        self._resting_until = {key: until for key, until in self._resting_until.items() if until > now}
        self._resting_until[worker.worker_id, worker.epoch] = now + self._rest_s


async def _connects(channel: grpc.aio.Channel) -> bool:
    """Whether the next attempt, or an earlier one, succeeds; unlike `channel_ready` it does not try again."""
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
    return True
