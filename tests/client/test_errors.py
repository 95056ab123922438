"""Every failure of a call is one of gemline.errors, exactly the one that was meant."""

from collections.abc import Callable

import grpc
import pytest
from support.client_api import ClientApi, next_piece
from support.fake_gateway import Fail, FakeGateway, Say, Served

from gemline import errors
from gemline.client import RetryPolicy

ONCE = RetryPolicy(max_attempts=1)


@pytest.fixture
def once(make_api: Callable[..., ClientApi], served: Served) -> ClientApi:
    return make_api(served.address, retry=ONCE)


@pytest.mark.parametrize("error", errors.BY_CODE.values(), ids=lambda error: error.code)
async def test_the_gateways_error_arrives_as_the_same_class(
    once: ClientApi, gateway: FakeGateway, error: type[errors.GemlineError]
) -> None:
    metadata = (("gemline-code", error.code), ("gemline-param", "field"))
    gateway.script.append(Fail(grpc.StatusCode[error.grpc_status], "the message é", metadata))
    with pytest.raises(errors.GemlineError) as caught:
        await once.generate("x")
    assert type(caught.value) is error
    assert (caught.value.message, caught.value.param) == ("the message é", "field")


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, errors.InvalidRequest),
        (grpc.StatusCode.UNAUTHENTICATED, errors.Unauthenticated),
        (grpc.StatusCode.PERMISSION_DENIED, errors.Forbidden),
        (grpc.StatusCode.NOT_FOUND, errors.ModelNotFound),
        (grpc.StatusCode.UNIMPLEMENTED, errors.RouteNotFound),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, errors.Overloaded),
        (grpc.StatusCode.UNAVAILABLE, errors.Unavailable),
        (grpc.StatusCode.CANCELLED, errors.Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, errors.DeadlineExceeded),
        (grpc.StatusCode.ABORTED, errors.Conflict),
        (grpc.StatusCode.FAILED_PRECONDITION, errors.StaleEpoch),
        (grpc.StatusCode.INTERNAL, errors.InternalError),
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.DATA_LOSS, errors.InternalError),
    ],
)
async def test_a_status_without_our_metadata_maps_by_itself(
    once: ClientApi, gateway: FakeGateway, status: grpc.StatusCode, error: type[errors.GemlineError]
) -> None:
    gateway.script.append(Fail(status, "some proxy said no"))
    with pytest.raises(errors.GemlineError) as caught:
        await next_piece(once.generate_stream("x", timeout_s=float("inf")))
    assert type(caught.value) is error


async def test_a_code_of_a_later_version_falls_back_on_the_status(once: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Fail(grpc.StatusCode.NOT_FOUND, "?", (("gemline-code", "from_the_future"),)))
    with pytest.raises(errors.ModelNotFound):
        await once.generate("x")


async def test_a_request_over_the_gateways_limit_says_so(once: ClientApi) -> None:
    with pytest.raises(errors.RequestTooLarge, match="larger than max"):
        await once.generate("x" * (5 * 2**20))


async def test_nobody_listening_is_unavailable_and_names_the_address(make_api: Callable[..., ClientApi]) -> None:
    api = make_api("127.0.0.1:1", retry=RetryPolicy(max_attempts=2, initial_backoff_s=0.01))
    with pytest.raises(errors.Unavailable, match=r"gateway at 127\.0\.0\.1:1"):
        await api.generate("x")
    await api.close()


async def test_a_deadline_passes_at_its_time_and_names_it(once: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Say(delay_s=1.0))  # without a deadline this would be an answer
    with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.2 s"):
        await once.generate("x", timeout_s=0.2)


async def test_a_deadline_holds_for_a_whole_stream(once: ClientApi, gateway: FakeGateway) -> None:
    gateway.script.append(Say(pieces=("a",), hang=True))
    stream = once.generate_stream("x", timeout_s=0.3)
    assert await next_piece(stream) is not None
    with pytest.raises(errors.DeadlineExceeded):
        await next_piece(stream)


async def test_the_gateway_learns_the_deadline(once: ClientApi, gateway: FakeGateway) -> None:
    await once.generate("x", timeout_s=5)
    (remaining_s,) = gateway.deadlines_s
    assert remaining_s is not None
    assert 3 < remaining_s < 6  # gRPC rounds up


async def test_all_tries_share_one_deadline(make_api: Callable[..., ClientApi], served: Served) -> None:
    away = Fail(grpc.StatusCode.UNAVAILABLE, "away")
    served.gateway.script.extend([away] * 1000)
    api = make_api(served.address, retry=RetryPolicy(max_attempts=1000, initial_backoff_s=0.05, max_backoff_s=0.05))
    with pytest.raises((errors.Unavailable, errors.DeadlineExceeded)):
        await api.generate("x", timeout_s=0.5)
    assert 2 <= len(served.gateway.requests) < 20  # of the thousand that the policy allows, 0.05 s apart
    await api.close()
