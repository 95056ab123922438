"""Which transport a call takes: the best that both sides may use and that is to be had, and gRPC always."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
from support.hand_transfer import BESIDE, Call, Ends, Order, num_mappings, two_ends
from support.workers import becomes_true

from gemline.errors import ConfigurationError
from gemline.internal.v1.prefill_pb2 import KvOffer
from gemline.transfer.transports import KvTransportSetting, Transport, allowed, choices, host_id, to_proto

SHM, SOCKET, NIXL = Transport.SHM, Transport.SOCKET, Transport.NIXL


def offer_of(transports: Iterable[Transport], host: str) -> KvOffer:
    return KvOffer(transports=[to_proto(transport) for transport in transports], host_id=host)


@pytest.mark.parametrize(
    ("theirs", "ours", "their_host", "chosen"),
    [
        (BESIDE, BESIDE, "here", [SHM, SOCKET]),
        (BESIDE, BESIDE, "elsewhere", [SOCKET]),
        (BESIDE, BESIDE, "", [SOCKET]),
        (BESIDE, {SOCKET}, "here", [SOCKET]),
        ({SHM}, BESIDE, "here", [SHM]),
        ({SHM}, BESIDE, "elsewhere", []),
        ({SHM}, {SOCKET}, "here", []),
        (set(), BESIDE, "here", []),
        (BESIDE, set(), "here", []),
        (BESIDE | {NIXL}, BESIDE, "here", [SHM, SOCKET]),
        (BESIDE | {NIXL}, BESIDE | {NIXL}, "here", [NIXL, SHM, SOCKET]),
    ],
)
def test_the_best_that_both_may_use_comes_first(
    theirs: set[Transport], ours: set[Transport], their_host: str, chosen: list[Transport]
) -> None:
    assert choices(offer_of(theirs, their_host), ours, "here") == chosen


def test_a_host_that_does_not_know_itself_shares_no_memory() -> None:
    assert choices(offer_of(BESIDE, ""), BESIDE, "") == [SOCKET]


def test_a_transport_of_a_newer_release_is_passed_over() -> None:
    assert choices(KvOffer(transports=[99, to_proto(SOCKET)], host_id="here"), BESIDE, "here") == [SOCKET]  # type: ignore[list-item]


def test_an_operator_may_forbid_all_but_one() -> None:
    assert allowed("auto") == {SHM, SOCKET}
    assert allowed("shm") == {SHM}
    assert allowed("socket") == {SOCKET}
    assert allowed("grpc") == frozenset()


def test_nixl_is_not_used_where_it_is_not_installed_nor_unless_it_is_asked_for() -> None:
    assert allowed("nixl") == frozenset()
    assert NIXL not in allowed("auto")


def test_nothing_that_leaves_the_host_in_clear_is_allowed_where_all_is_encrypted() -> None:
    assert allowed("auto", is_encrypted=True) == allowed("shm", is_encrypted=True) == {SHM}
    assert allowed("grpc", is_encrypted=True) == frozenset()
    settings: tuple[KvTransportSetting, ...] = ("socket", "nixl")
    for setting in settings:
        with pytest.raises(ConfigurationError, match=f"kv_transport {setting} sends keys and values in clear"):
            allowed(setting, is_encrypted=True)


def test_a_host_names_itself_the_same_at_every_call() -> None:
    assert host_id() == host_id() != ""


async def moved_by(ends: Ends, *offered: Transport) -> tuple[Transport, list[Transport]]:
    """By which transport a whole prompt came, and which were not to be had."""
    there, here = ends.prefill.prefilled(20), ends.decode.reserved(20)
    fetch = await ends.transfer(ends.offer(*offered), there, here, Order(chunks=(20,)))
    assert ends.is_moved(there, here, 20)
    assert await becomes_true(lambda: num_mappings() == 0)
    return fetch.transport, fetch.failed


async def test_what_cannot_be_reached_is_followed_by_the_next_within_the_call() -> None:
    async with two_ends(listens=frozenset({SHM})) as ends:
        assert await moved_by(ends, SHM, SOCKET) == (SHM, [])
        assert await moved_by(ends, SOCKET) == (Transport.GRPC, [SOCKET])
    async with two_ends(listens=frozenset({SOCKET})) as ends:
        assert await moved_by(ends, SHM, SOCKET) == (SOCKET, [SHM])
    async with two_ends(listens=frozenset()) as ends:
        assert await moved_by(ends, SHM, SOCKET) == (Transport.GRPC, [SHM, SOCKET])


async def test_without_an_offer_or_with_a_short_token_everything_comes_by_grpc() -> None:
    async with two_ends() as ends:
        assert await moved_by(ends) == (Transport.GRPC, [])
        there, here = ends.prefill.prefilled(20), ends.decode.reserved(20)
        short = replace(ends.offer(SHM, SOCKET), token=b"short")
        assert (await ends.transfer(short, there, here, Order(chunks=(20,)))).transport is Transport.GRPC


async def test_a_caller_that_never_comes_gets_its_frames_by_grpc() -> None:
    async with two_ends() as ends:
        call, offer = Call(), ends.offer(SOCKET)
        outlet = await ends.open(call, offer)

        assert outlet.transport is Transport.GRPC
        outlet.close()
