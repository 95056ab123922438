"""When a call is tried again: the rules by themselves, then through both clients."""

import threading
import time
from collections.abc import Callable

import grpc
import pytest
from grpc.aio import AioRpcError, Metadata
from hypothesis import given
from hypothesis import strategies as st
from support.client_api import ClientApi, next_piece, read_all
from support.fake_gateway import Fail, FakeGateway, Say, Served

from gemline.client import RetryPolicy
from gemline.client.retry import Tries
from gemline.errors import DeadlineExceeded, GemlineError, InvalidRequest, Overloaded, Unavailable

AWAY = Fail(grpc.StatusCode.UNAVAILABLE, "away", (("gemline-code", "unavailable"),))
FULL = Fail(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", (("gemline-code", "overloaded"),))
WRONG = Fail(grpc.StatusCode.INVALID_ARGUMENT, "wrong", (("gemline-code", "invalid_request"),))


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def failure(fail: Fail) -> AioRpcError:
    return AioRpcError(fail.status, Metadata(), Metadata(*fail.metadata), details=fail.details)


def pauses(tries: Tries, clock: Clock, fail: Fail = AWAY) -> tuple[list[float], GemlineError]:
    """Fail until it gives up."""
    waited: list[float] = []
    while True:
        try:
            waited.append(tries.pause_s(failure(fail)))
        except GemlineError as error:
            return waited, error
        clock.now_s += waited[-1]


def test_backoff_doubles_up_to_its_limit_and_the_last_error_is_raised() -> None:
    clock = Clock()
    policy = RetryPolicy(max_attempts=6, initial_backoff_s=1.0, max_backoff_s=4.0)
    waited, error = pauses(Tries(policy, "g", None, clock=clock, draw=lambda: 1.0), clock)
    assert waited == [1.0, 2.0, 4.0, 4.0, 4.0]
    assert isinstance(error, Unavailable)


@given(draw=st.floats(0, 1, exclude_max=True), num_failures=st.integers(1, 2000))
def test_jitter_takes_at_most_half_of_a_pause(draw: float, num_failures: int) -> None:
    policy = RetryPolicy(initial_backoff_s=0.2, max_backoff_s=5.0)
    pause_s = policy.backoff_s(num_failures, draw)
    whole_s = min(5.0, 0.2 * 2.0 ** min(num_failures - 1, 10))
    assert whole_s / 2 <= pause_s <= whole_s


@given(timeout_s=st.floats(0.01, 20), draw=st.floats(0, 1, exclude_max=True), max_attempts=st.integers(1, 50))
def test_pauses_never_reach_the_deadline(timeout_s: float, draw: float, max_attempts: int) -> None:
    clock = Clock()
    tries = Tries(RetryPolicy(max_attempts=max_attempts), "g", timeout_s, clock=clock, draw=lambda: draw)
    waited, error = pauses(tries, clock)
    assert sum(waited) < timeout_s
    assert len(waited) < max_attempts
    assert isinstance(error, Unavailable)


def test_what_is_left_of_the_deadline_is_all_the_next_try_gets() -> None:
    clock = Clock()
    tries = Tries(RetryPolicy(), "g", 5.0, clock=clock)
    clock.now_s += 3.0
    assert tries.remaining_s() == pytest.approx(2.0)
    clock.now_s += 2.0
    with pytest.raises(DeadlineExceeded, match="5 s"):
        tries.remaining_s()


@pytest.mark.parametrize("timeout_s", [None, float("inf")])
def test_no_timeout_is_no_deadline(timeout_s: float | None) -> None:
    assert Tries(RetryPolicy(), "g", timeout_s).remaining_s() is None


@pytest.mark.parametrize(("pushback", "expected"), [("300", [0.3]), ("1", [0.2]), ("-1", []), ("soon", []), ("", [])])
def test_the_gateways_own_wish_for_a_pause_is_heeded(pushback: str, expected: list[float]) -> None:
    clock = Clock()
    fail = Fail(grpc.StatusCode.UNAVAILABLE, metadata=(("grpc-retry-pushback-ms", pushback),))
    tries = Tries(RetryPolicy(max_attempts=2), "g", None, clock=clock, draw=lambda: 1.0)
    assert pauses(tries, clock, fail)[0] == expected


@pytest.mark.parametrize("fail", [AWAY, FULL])
async def test_a_whole_answer_is_tried_until_it_comes(api: ClientApi, gateway: FakeGateway, fail: Fail) -> None:
    gateway.script.extend([fail, fail, Say()])
    assert (await api.generate("x")).text == "Hello"
    assert len(gateway.requests) == 3


@pytest.mark.parametrize("fail", [AWAY, FULL])
async def test_a_stream_is_tried_until_its_first_piece(api: ClientApi, gateway: FakeGateway, fail: Fail) -> None:
    gateway.script.extend([fail, fail, Say()])
    stream = api.generate_stream("x")
    assert "".join(piece.text for piece in await read_all(stream)) == "Hello" == stream.text
    assert len(gateway.requests) == 3


@pytest.mark.parametrize("fail", [AWAY, FULL])
async def test_a_stream_is_not_tried_again_after_its_first_piece(
    api: ClientApi, gateway: FakeGateway, fail: Fail
) -> None:
    gateway.script.append(Say(pieces=("",), fail=fail))
    stream = api.generate_stream("x")
    assert await next_piece(stream) is not None
    with pytest.raises((Unavailable, Overloaded)):
        await next_piece(stream)
    assert len(gateway.requests) == 1


async def test_after_the_last_attempt_the_error_is_the_gateways(api: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.extend([FULL] * 5)
    with pytest.raises(Overloaded, match="full"):
        await api.generate("x")
    assert len(gateway.requests) == RetryPolicy().max_attempts


@pytest.mark.parametrize(
    ("fail", "error"),
    [(WRONG, InvalidRequest), (Fail(grpc.StatusCode.RESOURCE_EXHAUSTED), Overloaded)],
)
async def test_what_would_fail_again_is_tried_once(
    api: ClientApi, gateway: FakeGateway, fail: Fail, error: type[GemlineError]
) -> None:
    gateway.script.append(fail)
    with pytest.raises(error):
        await api.generate("x")
    assert len(gateway.requests) == 1


async def test_a_policy_of_one_attempt_never_tries_again(
    make_api: Callable[..., ClientApi], served: Served, gateway: FakeGateway
) -> None:
    api = make_api(served.address, retry=RetryPolicy(max_attempts=1))
    gateway.script.append(AWAY)
    with pytest.raises(Unavailable):
        await api.generate("x")
    assert len(gateway.requests) == 1
    await api.close()


async def test_a_gateway_that_restarts_is_found_again(make_api: Callable[..., ClientApi]) -> None:
    before = Served()
    api = make_api(before.address, retry=RetryPolicy(max_attempts=20, max_backoff_s=0.3))
    assert (await api.generate("x")).text == "Hello"
    before.stop()
    restarted: list[Served] = []
    restart = threading.Timer(0.5, lambda: restarted.append(Served(before.port)))
    restart.start()
    begun = time.monotonic()
    assert (await api.generate("x")).text == "Hello"
    assert time.monotonic() - begun < 5
    await api.close()
    restart.join()
    restarted[0].stop()
