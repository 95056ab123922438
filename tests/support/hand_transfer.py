"""Both ends of a transfer in one process, over caches without a model and a call without gRPC."""

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import grpc.aio
from support.hand_data import DataAct, Passing, Relay
from support.hand_prefill import call_prefill
from support.still_engine import StillEngine

from gemline.decode.kv_import import KvImport
from gemline.engine.config import Gemma2Config
from gemline.engine.events import TokenEvent
from gemline.errors import GemlineError, Unavailable
from gemline.internal.v1.prefill_pb2 import FrameHeader, KvOffer, PrefillRequest
from gemline.prefill.progress import Progress, Reached
from gemline.prefill.sender import KvSender
from gemline.prefill.servicer import SERVICE
from gemline.rpc.options import open_channel, server_options
from gemline.transfer.fetch import Fetch
from gemline.transfer.frames import encode, split
from gemline.transfer.listener import Listener
from gemline.transfer.offering import Offer
from gemline.transfer.opening import Doors
from gemline.transfer.outlet import Outlet, Write
from gemline.transfer.receive import FrameReader
from gemline.transfer.shared_memory import NAME
from gemline.transfer.transports import Transport, choices, host_id

# 8 KiB a token and layer: frames of more than 16 tokens are moved in threads, as large ones are.
CONFIG = Gemma2Config(
    vocab_size=97,
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
    max_position_embeddings=1024,
    sliding_window=6,
)
EVERY = (Transport.SHM, Transport.SOCKET, Transport.GRPC)
BESIDE = frozenset({Transport.SHM, Transport.SOCKET})


def num_mappings() -> int:
    """Of shared memory for keys and values, in this process, which something still uses."""
    gc.collect()  # a traceback may hold frames for as long as it likes
    return Path("/proc/self/maps").read_text().count(NAME)


class Call:
    """One call's frames: what is written is read, until it is broken."""

    def __init__(self) -> None:
        self._frames: asyncio.Queue[bytes | Exception] = asyncio.Queue()
        self._room = asyncio.Semaphore(4)

    async def write(self, frame: bytes) -> None:
        await self._room.acquire()
        self._frames.put_nowait(frame)

    def end(self, error: Exception) -> None:
        self._frames.put_nowait(error)

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        frame = await self._frames.get()
        if isinstance(frame, Exception):
            raise frame
        self._room.release()
        return frame


class RelayedCall(Call):
    """With somebody in between on the data connection, who does `act` at its frame `at_frame`."""

    def __init__(self, at_frame: int, act: DataAct) -> None:
        super().__init__()
        self.acted = False
        loop = asyncio.get_running_loop()

        def seen(passing: Passing) -> None:
            self.acted = True
            act(passing)

        def killed() -> None:
            loop.call_soon_threadsafe(self.end, Unavailable("killed"))

        self._relay = Relay(at_frame, seen, killed)

    async def write(self, frame: bytes) -> None:
        header, _ = split(frame)
        if header.HasField("open"):
            frame = encode(FrameHeader(open=self._relay.opened(header.open)))
        await super().write(frame)


@dataclass(frozen=True)
class Order:
    """One prompt to be transferred, computed in these chunks."""

    chunks: tuple[int, ...] = (20, 45, 60)
    wire_dtype: str = ""
    heads: range | None = None

    @property
    def num_tokens(self) -> int:
        return self.chunks[-1]


@dataclass
class Ends:
    """A prefill and a decode worker's parts, and what the one has for the other."""

    prefill: StillEngine
    decode: StillEngine
    doors: Doors
    host: str = "127.0.0.1"
    write_timeout_s: float = 10.0
    senders: list[KvSender] = field(default_factory=list)  # that are at work
    num_done_bytes: int = 0  # by those that were

    @property
    def num_sent_bytes(self) -> int:
        """By all senders so far."""
        return self.num_done_bytes + sum(sender.num_bytes for sender in self.senders)

    def offer(self, *transports: Transport) -> Offer:
        return Offer(frozenset(transports) - {Transport.GRPC}, self.host, self.decode.movers)

    def fetch(self, call: Call, offer: Offer, order: Order = Order()) -> Fetch:
        form = self.decode.form(order.wire_dtype, order.heads)
        return Fetch(call, offer, FrameReader(self.decode.needed(order.num_tokens), form.token_bytes))

    async def open(self, call: Call, offer: Offer) -> Outlet:
        message = offer.message or KvOffer()
        return await self.doors.open(message, choices(message, BESIDE, host_id()), call.write)

    async def send(self, call: Call, offer: Offer, there: int, order: Order) -> None:
        """The prefill worker's side; what breaks it breaks the call."""
        try:
            await self.send_through(await self.open(call, offer), call.write, there, order)
        except GemlineError as error:
            call.end(error)
            raise

    async def send_through(self, outlet: Outlet, write: Write, there: int, order: Order) -> None:
        needed, form = self.prefill.needed(order.num_tokens), self.prefill.form(order.wire_dtype, order.heads)
        sender = KvSender(self.prefill, there, needed, form, outlet, lambda: None, self.write_timeout_s)
        self.senders.append(sender)
        try:
            await write(encode(FrameHeader(end=await sender.send(Told(order.chunks)))))
        finally:
            outlet.close()
            self.senders.remove(sender)
            self.num_done_bytes += sender.num_bytes

    async def receive(self, call: Call, offer: Offer, here: int, order: Order) -> Fetch:
        """The decode worker's side."""
        with self.fetch(call, offer, order) as fetch:
            await KvImport(self.decode, here, self.decode.form(order.wire_dtype, order.heads)).run(fetch)
        return fetch

    async def transfer(self, offer: Offer, there: int, here: int, order: Order, call: Call | None = None) -> Fetch:
        """Both."""
        call = call or Call()
        sending = asyncio.create_task(self.send(call, offer, there, order))
        try:
            fetch = await self.receive(call, offer, here, order)
            await sending
            return fetch
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    def is_moved(self, there: int, here: int, num_tokens: int) -> bool:
        """Whether everything that a decoded token needs has come."""
        return all(
            self.prefill.contents(there, layer, needed).equal(self.decode.contents(here, layer, needed))
            for layer, needed in enumerate(self.decode.needed(num_tokens))
        )


class Told(Progress):
    """A prefill whose every chunk is heard of, one at each question; the first token comes with the last."""

    def __init__(self, chunks: Iterable[int]) -> None:
        super().__init__()
        *self._chunks, self._last = chunks

    async def next(self) -> Reached:
        await asyncio.sleep(0)
        self.computed_s = time.monotonic()
        if self._chunks:
            return Reached(self._chunks.pop(0), None)
        return Reached(self._last, TokenEvent(1, 7))


@asynccontextmanager
async def serving(ends: Ends, there: int, order: Order) -> AsyncIterator[str]:
    """The prefill worker's side behind real gRPC, for one sequence over and over; its address."""

    async def prefill(request: PrefillRequest, context: Any) -> None:
        outlet = await ends.doors.open(request.offer, choices(request.offer, BESIDE, host_id()), context.write)
        await ends.send_through(outlet, context.write, there, replace(order, wire_dtype=request.wire_dtype))

    server = grpc.aio.server(options=server_options())
    method: Any = grpc.unary_stream_rpc_method_handler(prefill, PrefillRequest.FromString, None)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"Prefill": method}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


@asynccontextmanager
async def calling(address: str, offer: Offer, wire_dtype: str = "") -> AsyncIterator[Any]:
    """A call to `serving`; its frames."""
    async with open_channel(address) as channel:
        await channel.channel_ready()
        call = call_prefill(channel, PrefillRequest(offer=offer.message, wire_dtype=wire_dtype))
        try:
            yield call.__aiter__()
        finally:
            call.cancel()


@asynccontextmanager
async def two_ends(
    prefill: StillEngine | None = None, decode: StillEngine | None = None, listens: frozenset[Transport] = BESIDE
) -> AsyncIterator[Ends]:
    """Ready to transfer: of different contents, and with different block sizes."""
    prefill = prefill or StillEngine(CONFIG, 400, seed=1)
    listener = Listener(prefill.movers)
    if Transport.SOCKET in listens:
        listener.listen("127.0.0.1", 0)
    if Transport.SHM in listens:
        listener.listen_locally()
    try:
        yield Ends(prefill, decode or StillEngine(CONFIG, 500, block_size=3, seed=2), Doors(prefill.movers, listener))
    finally:
        await listener.close()
