"""What every public gRPC method does first and last: names the call, finds out whose it is, counts it, hides faults."""

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

import grpc.aio

from gemline.cluster.access import Band
from gemline.errors import GemlineError, InternalError
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_auth import REQUEST_ID_KEY, bearer, metadata_value, name_call
from gemline.gateway.requests import GenerationRequest, Prompt, SamplingOptions, Tenant

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Call(NamedTuple):
    """Who calls, and the name of what they ask for."""

    tenant: Tenant
    request_id: str
    traceparent: str
    context: Context
    arrived_s: float  # of the monotonic clock

    @property
    def timeout_s(self) -> float | None:
        """What is left of the caller's patience; None: there is no end to it."""
        return self.context.time_remaining()

    def asks(
        self, model: str, prompt: Prompt, sampling: SamplingOptions, *, band: Band | None, reads_calls: bool
    ) -> GenerationRequest:
        """What it asks to be generated."""
        return GenerationRequest(
            self.request_id,
            model,
            prompt,
            sampling,
            band=band,
            timeout_s=self.timeout_s,
            reads_calls=reads_calls,
            arrived_s=self.arrived_s,
        )

    def tell_standing(self) -> None:
        """How the caller's limits stand, after the answer."""
        self.context.set_trailing_metadata(((REQUEST_ID_KEY, self.request_id), *self.tenant.standing.headers()))


@asynccontextmanager
async def called(gateway: Gateway, context: Context, *, asks_for_tokens: bool = False) -> AsyncIterator[Call]:
    """Inside, a call that has a name, which the caller knows, and an owner, and is counted before anything is done for
    it, or, if it asks for tokens, perhaps with what it reserves of them. At its end the caller hears how limits stand.

    What is not an error of ours is logged under the request's name and hidden from the caller.
    """
    arrived_s = time.monotonic()
    metadata = context.invocation_metadata()
    request_id = await name_call(context)
    tenant = await gateway.authenticate(bearer(metadata))
    call = Call(tenant, request_id, metadata_value(metadata, "traceparent"), context, arrived_s)
    try:
        await (gateway.meet(tenant) if asks_for_tokens else gateway.count(tenant))
        yield call
    except GemlineError:
        raise
    except Exception as error:
        log.exception("request %s failed", request_id)
        raise InternalError(f"internal error; request id {request_id}") from error
    finally:
        with suppress(GemlineError):  # what fails before it reserves any counts too; it fails as it did
            await gateway.count(tenant)
        call.tell_standing()
