"""A request's way in: within its key's limits, when it is its turn, to a worker. Knows no tokenizer and no wire."""

import asyncio

from gemline.cluster.limits import LimitStore
from gemline.cluster.records import ModelCard
from gemline.cluster.served import ServedElsewhere
from gemline.errors import GemlineError
from gemline.gateway.account import Account
from gemline.gateway.allowance import Allowance, Ended
from gemline.gateway.common_shares import follow
from gemline.gateway.dispatch import Dispatch
from gemline.gateway.fair_queue import FairQueue, HasRoom
from gemline.gateway.kv_layout import kv_layout
from gemline.gateway.metrics import CANCELED
from gemline.gateway.requests import GenerationRequest, Tenant
from gemline.gateway.shares import Shares
from gemline.telemetry import Telemetry


class Admission:
    """Of one gateway. `start` before the first request, `stop` after the last."""

    def __init__(
        self,
        has_room: HasRoom,
        telemetry: Telemetry,
        limits: LimitStore | None = None,
        served: ServedElsewhere | None = None,
        share_without_redis: float = 0.0,
    ) -> None:
        """`has_room` says whether a worker could begin soon. Without `limits` nothing is limited and no usage recorded;
        without `served` it is fair by itself alone.
        """
        self.allowance = Allowance(limits, telemetry, share_without_redis)
        self._shares = Shares()
        self._queue = FairQueue(has_room, self._shares)
        self._served = served
        self._sharing: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Settle, renew and tell other gateways, in the background."""
        self.allowance.start()
        if self._served is not None:
            self._sharing = asyncio.create_task(follow(self._shares, self._served), name="common shares")

    async def stop(self) -> None:
        """Settle what can be settled soon, then no more."""
        await self.allowance.stop()
        if self._sharing is not None:
            self._sharing.cancel()

    def kick(self) -> None:
        """A worker may have more room than before."""
        self._queue.kick()

    async def enter(
        self,
        tenant: Tenant,
        request: GenerationRequest,
        card: ModelCard,
        dispatch: Dispatch,
        num_prompt_tokens: int,
        max_tokens: int,
    ) -> Account:
        """Returns when a worker has the request. What does not get so far holds nothing afterwards.

        Raises RateLimited, Overloaded, DeadlineExceeded and what `Dispatch.start` raises.
        """
        most = num_prompt_tokens + max_tokens
        claim = await self.allowance.reserve(tenant, request.request_id, card.model_id, most, kv_layout(card))
        try:
            asking = tenant.asking(card.model_id, num_prompt_tokens, request.band, request.timeout_s)
            ticket = await self._queue.admit(asking)
            try:
                await dispatch.start()
            except BaseException:
                ticket.end()
                raise
        except BaseException as error:
            claim.settle(Ended(error.code if isinstance(error, GemlineError) else CANCELED))
            raise
        ticket.sent()
        return Account(claim, ticket)
