"""Calls prefill workers: which one, over which channel, and the frames it sends. Knows no engine and no frame."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

import grpc
import grpc.aio

from gemline.cluster.records import ModelCard, State, WorkerRecord
from gemline.decode.placement import There
from gemline.errors import GemlineError, Unavailable
from gemline.internal.v1.prefill_pb2 import PrefillEnd, PrefillRequest
from gemline.rpc.options import OpenChannel, open_channel
from gemline.rpc.status import from_rpc_error
from gemline.transfer.transports import Transport

METHOD = "/gemline.internal.v1.Prefill/Prefill"


class _Peer:
    """One life of one prefill worker, as seen from here."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls: dict[asyncio.Timeout, int] = {}  # those in flight, by what ends them, with their prompts' tokens
        self.tokens_per_s: float | None = None  # as it said last
        self.rests_until_s = float("-inf")  # monotonic
        self.avoided_until_s: dict[Transport, float] = {}  # monotonic


class PrefillClient:
    """`workers` gives the prefill workers of our model as they are now; `follow` hears when they have changed.
    `transports` may be used beside gRPC.

    A worker that failed is left alone for `rest_s`: until its lease is over it would be picked again and again. A
    transport that could not be had there is not waited for again before `avoid_s`: it may have been a busy moment.
    """

    def __init__(
        self,
        workers: Callable[[], Iterable[WorkerRecord]],
        card: ModelCard,
        open_channel: OpenChannel = open_channel,
        *,
        transports: frozenset[Transport] = frozenset(),
        connect_timeout_s: float = 2.0,
        rest_s: float = 2.0,
        avoid_s: float = 60.0,
    ) -> None:
        self._workers = workers
        self._card = card
        self._open_channel = open_channel
        self._transports = transports
        self._connect_timeout_s = connect_timeout_s
        self._rest_s = rest_s
        self._avoid_s = avoid_s
        self._peers: dict[tuple[str, int], _Peer] = {}  # by worker_id and epoch

    def pick(self) -> WorkerRecord | None:
        """The least loaded ready worker of our very model, dtypes and quantization too; None when there is none."""
        now_s = time.monotonic()
        fit = [
            worker
            for worker in self._workers()
            if worker.state is State.READY
            and worker.model == self._card
            and ((peer := self._peers.get(_life(worker))) is None or peer.rests_until_s <= now_s)
        ]
        return min(fit, key=self._load, default=None)

    def outlook(self, worker: WorkerRecord, num_tokens: int) -> There:
        """What a prompt of so many tokens would meet there: what others have there is taken to be as long as it is."""
        peer = self._peers.get(_life(worker))
        own = sum(peer.calls.values()) if peer else 0
        others = max(0, worker.num_running + worker.num_waiting - (len(peer.calls) if peer else 0))
        return There(num_tokens, own + others * num_tokens, peer.tokens_per_s if peer else None)

    def learn(self, worker: WorkerRecord, end: PrefillEnd) -> None:
        """From what a prefill ended with."""
        if (peer := self._peers.get(_life(worker))) is not None and end.tokens_per_s:
            peer.tokens_per_s = end.tokens_per_s

    def transports(self, worker: WorkerRecord) -> frozenset[Transport]:
        """By which its keys and values can come beside gRPC, as far as is known."""
        if (peer := self._peers.get(_life(worker))) is None:
            return self._transports
        now_s = time.monotonic()
        return self._transports - {it for it, until_s in peer.avoided_until_s.items() if until_s > now_s}

    def avoid(self, worker: WorkerRecord, transports: Iterable[Transport]) -> None:
        """They failed: for a while they are not waited for again."""
        if (peer := self._peers.get(_life(worker))) is not None:
            peer.avoided_until_s |= dict.fromkeys(transports, time.monotonic() + self._avoid_s)

    def follow(self) -> None:
        """Ends the calls to lives that are over: such a worker sends nothing more, even if its connection stands."""
        for peer in self._gone():
            calls, peer.calls = peer.calls, {}
            for call in calls:
                call.reschedule(asyncio.get_running_loop().time())

    @asynccontextmanager
    async def call(
        self, worker: WorkerRecord, request: PrefillRequest, traceparent: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """The frames of one prefill. Leaving the block ends the call; a failed call raises a GemlineError."""
        if (peer := self._peers.get(_life(worker))) is None:
            peer = self._peers[_life(worker)] = _Peer(self._open_channel(worker.address))
        try:
            async with asyncio.timeout(None) as ending:
                peer.calls[ending] = len(request.token_ids)
                await self._connect(worker, peer)
                method: grpc.aio.UnaryStreamMultiCallable[PrefillRequest, bytes] = peer.channel.unary_stream(
                    METHOD, request_serializer=PrefillRequest.SerializeToString, response_deserializer=None
                )
                call = method(request, metadata=(("traceparent", traceparent),) if traceparent else None)
                try:
                    yield call.__aiter__()
                finally:
                    call.cancel()
        except TimeoutError:
            raise Unavailable(f"prefill worker {worker.worker_id} has lost its lease") from None
        except grpc.aio.AioRpcError as error:
            self._rest(peer)
            raise from_rpc_error(error, peer=f"prefill worker {worker.worker_id}") from None
        except GemlineError:
            self._rest(peer)
            raise
        finally:
            peer.calls.pop(ending, None)
            await self._forget_the_gone()

    async def close(self) -> None:
        """Ends every call and connection."""
        peers, self._peers = self._peers, {}
        for peer in peers.values():
            await peer.channel.close()

    async def _connect(self, worker: WorkerRecord, peer: _Peer) -> None:
        """Without the wait a worker behind a broken network would hold a request until TCP gives up."""
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connected = await _connects(peer.channel)
        except TimeoutError:
            connected = False
        if not connected:
            if len(peer.calls) == 1:  # ours: the next one tries with the certificate of then
                useless, peer.channel = peer.channel, self._open_channel(worker.address)
                await useless.close()
            raise Unavailable(f"prefill worker {worker.worker_id} cannot be reached")

    async def _forget_the_gone(self) -> None:
        """Not a channel with a call on it: gRPC would cancel our task, which nobody has asked for."""
        idle = [peer for peer in self._gone() if not peer.calls]
        self._peers = {life: peer for life, peer in self._peers.items() if peer not in idle}
        for peer in idle:
            await peer.channel.close()

    def _gone(self) -> list[_Peer]:
        present = {_life(worker) for worker in self._workers()}
        return [peer for life, peer in self._peers.items() if life not in present]

    def _load(self, worker: WorkerRecord) -> tuple[int, str]:
        peer = self._peers.get(_life(worker))
        return worker.num_running + worker.num_waiting + (len(peer.calls) if peer else 0), worker.worker_id

    def _rest(self, peer: _Peer) -> None:
        peer.rests_until_s = time.monotonic() + self._rest_s


def _life(worker: WorkerRecord) -> tuple[str, int]:
    return worker.worker_id, worker.epoch


async def _connects(channel: grpc.aio.Channel) -> bool:
    """Whether the next attempt, or an earlier one, succeeds; unlike `channel_ready` it does not try again."""
    while (state := channel.get_state(try_to_connect=True)) is not grpc.ChannelConnectivity.READY:
        if state in (grpc.ChannelConnectivity.TRANSIENT_FAILURE, grpc.ChannelConnectivity.SHUTDOWN):
            return False
        await channel.wait_for_state_change(state)
    return True
