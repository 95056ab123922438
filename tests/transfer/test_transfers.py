"""From one cache into another by every transport: what is needed, and nothing else, whatever happens on the way."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from itertools import count
from typing import TypeVar

import pytest
import torch
from support import hand_data
from support.hand_transfer import BESIDE, CONFIG, EVERY, Call, Ends, Order, RelayedCall, num_mappings, two_ends
from support.still_engine import StillEngine
from support.workers import becomes_true

from gemline.engine.handover import Handover
from gemline.engine.roster import UnknownSequence
from gemline.errors import DeadlineExceeded, Unavailable
from gemline.transfer.frames import TransferError
from gemline.transfer.transports import Transport

T = TypeVar("T")
ORDER = Order()
every_transport = pytest.mark.parametrize("transport", EVERY, ids=lambda transport: transport.value)


class Gated(StillEngine):
    """Moves frames as long as the gate is open."""

    def __init__(self, *args: object, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self.num_moved = 0
        self.gate = asyncio.Event()

    async def hand_over(self, num_bytes: int, move: Callable[[Handover], T]) -> T:
        if self.num_moved >= 3:
            await self.gate.wait()
        self.num_moved += 1
        return await super().hand_over(num_bytes, move)


@pytest.fixture
async def ends() -> AsyncIterator[Ends]:
    async with two_ends() as ends:
        yield ends
    assert await becomes_true(lambda: num_mappings() == 0)


@every_transport
async def test_what_is_needed_arrives_and_nothing_else_changes(ends: Ends, transport: Transport) -> None:
    there, here = ends.prefill.prefilled(60), ends.decode.reserved(60)
    before = [torch.stack(pool[:2]).flatten(1, 2) for pool in ends.decode.cache.pools]

    fetch = await ends.transfer(ends.offer(transport), there, here, ORDER)

    assert fetch.transport is transport
    assert ends.is_moved(there, here, 60)
    for layer, needed in enumerate(ends.decode.needed(60)):
        after = torch.stack(ends.decode.cache.pools[layer][:2]).flatten(1, 2)
        is_other = torch.ones(after.shape[1], dtype=torch.bool)
        is_other[ends.decode.slots(here, layer, needed)] = False
        assert after[:, is_other].equal(before[layer][:, is_other])


@every_transport
@pytest.mark.parametrize(("dtype", "wire"), [(torch.bfloat16, ""), (torch.float32, "bfloat16")])
async def test_what_travels_in_bfloat16_is_rounded_to_it_and_no_more(
    transport: Transport, dtype: torch.dtype, wire: str
) -> None:
    prefill, decode = StillEngine(CONFIG, 40, dtype), StillEngine(CONFIG, 30, dtype, block_size=8, seed=3)
    async with two_ends(prefill, decode) as ends:
        there, here = prefill.prefilled(60), decode.reserved(60)
        await ends.transfer(ends.offer(transport), there, here, Order(wire_dtype=wire))

        for layer, needed in enumerate(decode.needed(60)):
            sent = prefill.contents(there, layer, needed).bfloat16().to(dtype)
            assert decode.contents(here, layer, needed).equal(sent)


@every_transport
async def test_callers_of_half_the_heads_each_make_a_whole(ends: Ends, transport: Transport) -> None:
    there, here = ends.prefill.prefilled(60), ends.decode.reserved(60)
    halves = [Order(heads=range(2)), Order(heads=range(2, 4))]

    await asyncio.gather(*(ends.transfer(ends.offer(transport), there, here, half) for half in halves))

    assert ends.is_moved(there, here, 60)


async def test_many_at_once_by_all_transports_each_get_their_own(ends: Ends) -> None:
    pairs = [(ends.prefill.prefilled(10 + n), ends.decode.reserved(10 + n), 10 + n) for n in range(12)]

    await asyncio.gather(
        *(
            ends.transfer(ends.offer(EVERY[n % 3]), there, here, Order(chunks=(5, size)))
            for n, (there, here, size) in enumerate(pairs)
        )
    )

    assert all(ends.is_moved(there, here, size) for there, here, size in pairs)


@every_transport
async def test_a_slow_reader_holds_up_a_bounded_number_of_bytes_and_in_the_end_costs_the_call(
    transport: Transport,
) -> None:
    large = replace(CONFIG, head_dim=1024)  # 16 KiB a token and layer: 20 MiB, far more than sockets hold
    prefill, decode = StillEngine(large, 170, torch.bfloat16), Gated(large, 170, torch.bfloat16)
    order = Order(chunks=tuple(range(20, 641, 20)))
    async with two_ends(prefill, decode) as ends:
        ends.write_timeout_s = 0.5
        there, here, call, offer = prefill.prefilled(640), decode.reserved(640), Call(), ends.offer(transport)
        sending = asyncio.create_task(ends.send(call, offer, there, order))

        receiving = asyncio.create_task(ends.receive(call, offer, here, order))

        with pytest.raises(DeadlineExceeded, match=r"took no frame for 0\.5 s"):
            await sending
        assert decode.num_moved == 3
        assert ends.num_sent_bytes < 16 * 2**20

        decode.gate.set()
        with pytest.raises(DeadlineExceeded):
            await receiving


@every_transport
async def test_a_call_that_breaks_ends_the_transfer_with_its_own_error(transport: Transport) -> None:
    async with two_ends(prefill=Gated(CONFIG, 40)) as ends:
        there, here, call, offer = ends.prefill.prefilled(60), ends.decode.reserved(60), Call(), ends.offer(transport)
        sending = asyncio.create_task(ends.send(call, offer, there, ORDER))
        receiving = asyncio.create_task(ends.receive(call, offer, here, ORDER))
        assert await becomes_true(lambda: ends.num_sent_bytes > 0)

        call.end(Unavailable("the worker is gone"))

        with pytest.raises(Unavailable, match="the worker is gone"):
            await receiving
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert await becomes_true(lambda: num_mappings() == 0)


@pytest.mark.parametrize("transport", sorted(BESIDE, key=str), ids=lambda transport: transport.value)
async def test_a_sender_whose_data_connection_ends_early_is_not_believed(transport: Transport) -> None:
    async with two_ends(prefill=Gated(CONFIG, 40)) as ends:
        there, here, call, offer = ends.prefill.prefilled(60), ends.decode.reserved(60), Call(), ends.offer(transport)
        sending = asyncio.create_task(ends.send(call, offer, there, ORDER))
        receiving = asyncio.create_task(ends.receive(call, offer, here, ORDER))
        assert await becomes_true(lambda: ends.num_sent_bytes > 0)

        sending.cancel()  # which closes the connection and leaves the call open

        with pytest.raises(TransferError, match=r"has closed the data connection|the data connection broke"):
            await asyncio.wait_for(receiving, 20)
        assert await becomes_true(lambda: num_mappings() == 0)


@pytest.mark.parametrize("transport", sorted(BESIDE, key=str), ids=lambda transport: transport.value)
@pytest.mark.parametrize("act", hand_data.ACTS, ids=[act.__name__ for act in hand_data.ACTS])
async def test_a_frame_that_is_spoiled_on_its_way_is_never_taken_for_what_was_sent(
    ends: Ends, transport: Transport, act: hand_data.DataAct
) -> None:
    num_spoiled = 0
    for at_frame in count():
        there, here = ends.prefill.prefilled(60), ends.decode.reserved(60)
        call = RelayedCall(at_frame, act)
        try:
            await ends.transfer(ends.offer(transport), there, here, ORDER, call)
        except (TransferError, Unavailable):
            num_spoiled += call.acted
        else:
            assert ends.is_moved(there, here, 60)
            assert not call.acted or act is hand_data.repeat  # a last frame that comes twice comes too late to matter
        ends.prefill.cancel(there)
        ends.decode.cancel(here)
        if not call.acted:
            break
    assert num_spoiled >= at_frame - 1 >= 3


@every_transport
async def test_a_receiver_that_is_cancelled_leaves_no_memory_and_no_sender_behind(transport: Transport) -> None:
    async with two_ends(decode=Gated(CONFIG, 40)) as ends:
        order = Order(chunks=tuple(range(1, 61)))
        there, here, call, offer = ends.prefill.prefilled(60), ends.decode.reserved(60), Call(), ends.offer(transport)
        sending = asyncio.create_task(ends.send(call, offer, there, order))
        receiving = asyncio.create_task(ends.receive(call, offer, here, order))
        assert await becomes_true(lambda: ends.num_sent_bytes > 5 * 8192)

        receiving.cancel()
        ends.decode.cancel(here)

        with pytest.raises(asyncio.CancelledError):
            await receiving
        if transport in BESIDE:  # of gRPC the call's own end tells the sender
            with pytest.raises(TransferError):
                await asyncio.wait_for(sending, 20)
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        assert await becomes_true(lambda: num_mappings() == 0)


@every_transport
async def test_nothing_lands_in_a_sequence_that_was_cancelled_here(ends: Ends, transport: Transport) -> None:
    there, here = ends.prefill.prefilled(60), ends.decode.reserved(60)
    ends.decode.cancel(here)
    before = [torch.stack(pool[:2]).clone() for pool in ends.decode.cache.pools]

    with pytest.raises(UnknownSequence):
        await ends.transfer(ends.offer(transport), there, here, ORDER)

    assert all(torch.stack(p[:2]).equal(b) for p, b in zip(ends.decode.cache.pools, before, strict=True))
