"""What a key may use: asked before work begins, settled when it has ended. Between the core and the limits in Redis."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from dataclasses import dataclass

from gemline.cluster.limits import Level, LimitStore, Refusal, Reserved, UsageRecord
from gemline.errors import GemlineError, QuotaExceeded, RateLimited, Unavailable
from gemline.gateway.kv_layout import KvLayout
from gemline.gateway.local_limits import LocalLimits
from gemline.gateway.metrics import CANCELED
from gemline.gateway.requests import Tenant
from gemline.telemetry import Telemetry

MAX_UNSETTLED = 10_000  # records kept while Redis is away; the oldest go first
_RETRY_S = 1.0
_FAR = 0.5  # of its requests a minute: with more left, a tenant is far from its limit
_MAX_KNOWN = 10_000
_WORDS = {
    "requests": "requests a minute",
    "tokens": "tokens a minute",
    "concurrent_requests": "requests at once",
    "token_budget": "tokens of its budget",
    "kv_byte_seconds": "KV byte-seconds of its budget",
}
_KINDS = {"t": "tenant", "p": "project", "k": "API key"}

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Ended:
    """How a request came to its end, and what of it was delivered."""

    outcome: str
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0


class Claim:
    """One request's reservation, until `settle`; that may be called again and does nothing then."""

    def __init__(
        self, allowance: "Allowance", tenant: Tenant, request_id: str, model: str, num_tokens: int, layout: KvLayout
    ) -> None:
        self._allowance = allowance
        self.tenant = tenant
        self.request_id = request_id
        self.model = model
        self.num_tokens = num_tokens  # that are reserved
        self.scopes = tenant.scopes
        self.reserved: Reserved | None = None  # None: nothing of it is in Redis
        self._layout = layout
        self._begun_s = time.monotonic()
        self._is_open = True

    def settle(self, ended: Ended) -> None:
        """Never waits, never fails: what it used goes to Redis behind it, again and again while that is away."""
        if not self._is_open:
            return
        self._is_open = False
        access = self.tenant.access
        key, project = (access.key, access.project) if access is not None else (None, None)
        whole = ended.prompt_tokens + ended.completion_tokens
        held = (self._layout.num_bytes(ended.prompt_tokens) + self._layout.num_bytes(whole)) / 2
        usage = UsageRecord(
            request_id=self.request_id,
            tenant=self.tenant.tenant_id,
            project=project.project_id if project else "",
            key_id=key.key_id if key else "",
            model=self.model,
            outcome=ended.outcome,
            prompt_tokens=ended.prompt_tokens,
            cached_tokens=ended.cached_tokens,
            completion_tokens=ended.completion_tokens,
            kv_byte_seconds=round(held * (time.monotonic() - self._begun_s)),
        )
        self._allowance.ended(self, usage)


class Allowance:
    """Of one gateway. `start` before the first request, `stop` after the last.

    Without a store nothing is limited and nothing is recorded. While Redis is away a request with limits is refused,
    or held to a share of them by this gateway alone, as `share_without_redis` says.
    """

    def __init__(self, store: LimitStore | None, telemetry: Telemetry, share_without_redis: float = 0.0) -> None:
        self._store = store
        self._local = LocalLimits(share_without_redis) if share_without_redis else None
        self._claims: set[Claim] = set()  # that are in Redis
        self._is_far: dict[str, bool] = {}  # from its limit of requests, by the innermost scope's name
        self._unsettled: deque[tuple[Claim, UsageRecord]] = deque()
        self._has_unsettled = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._dropped = telemetry.meter.create_counter(
            "gemline_gateway_usage_dropped", description="Usage records that were lost, as Redis was away for too long."
        )
        self._refused = telemetry.meter.create_counter(
            "gemline_gateway_refusals", description="Requests that did not fit a limit of their tenant's, by kind."
        )

    def start(self) -> None:
        """Settle and renew in the background."""
        if self._store is not None:
            self._tasks = [
                asyncio.create_task(self._settle_all(self._store), name="settle usage"),
                asyncio.create_task(self._renew_all(self._store), name="renew reservations"),
            ]

    async def stop(self) -> None:
        """Settle what can be settled soon, then no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._store is not None and self._unsettled:
            with contextlib.suppress(TimeoutError, GemlineError):
                async with asyncio.timeout(_RETRY_S):
                    await self._settle_queued(self._store)
            self._dropped.add(len(self._unsettled))

    async def meet(self, tenant: Tenant) -> None:
        """A request has come, which asks for nothing yet. It is counted now if its tenant may be near a limit of such;
        else with what it reserves, in one question to Redis instead of two, or by `count`, which has to be called
        before it is answered. Raises as `count`.
        """
        if tenant.scopes and not self._is_far.get(tenant.scopes[-1].name):
            await self.count(tenant)

    async def count(self, tenant: Tenant) -> None:
        """One request, whatever it asks for, if it is not counted yet. Raises RateLimited, and Unavailable while Redis
        is away.
        """
        scopes = tenant.scopes
        if self._store is None or not scopes or tenant.standing.is_counted:
            return
        tenant.standing.is_counted = True
        try:
            reserved = await self._store.count(scopes)
        except Unavailable as error:
            self._without_redis(error).count(scopes)
            return
        self._take(tenant, reserved)

    async def reserve(self, tenant: Tenant, request_id: str, model: str, num_tokens: int, layout: KvLayout) -> Claim:
        """As many tokens as the request may come to. Raises as `count` does; the claim must be settled.

        Who is cancelled here holds nothing, whatever Redis did; while it does not answer, its lease ends what it did.
        """
        claim = Claim(self, tenant, request_id, model, num_tokens, layout)
        if self._store is None or not claim.scopes:
            return claim
        counts, tenant.standing.is_counted = not tenant.standing.is_counted, True
        try:
            reserved = await self._store.reserve(claim.scopes, request_id, num_tokens, counts=counts)
        except asyncio.CancelledError:
            claim.settle(Ended(CANCELED))  # Redis may have taken it all the same
            raise
        except Unavailable as error:
            local = self._without_redis(error)
            if counts:
                local.count(claim.scopes)
            local.reserve(claim.scopes, request_id, num_tokens)
            return claim
        if counts and reserved.refusal is not None and reserved.refusal.kind != "requests":
            tenant.standing.is_counted = False  # nothing was taken, and it is to count
        self._take(tenant, reserved)
        claim.reserved = reserved
        self._claims.add(claim)
        return claim

    def ended(self, claim: Claim, usage: UsageRecord) -> None:
        """A claim's request has come to its end."""
        self._claims.discard(claim)
        if self._local is not None:
            self._local.release(claim.scopes, claim.request_id)
        if self._store is None:
            return
        if len(self._unsettled) >= MAX_UNSETTLED:
            self._unsettled.popleft()
            self._dropped.add(1)
        self._unsettled.append((claim, usage))
        self._has_unsettled.set()

    def _take(self, tenant: Tenant, reserved: Reserved) -> None:
        tenant.standing.see(reserved)
        self._note(tenant.scopes[-1].name, reserved.requests)
        if reserved.refusal is not None:
            self._refused.add(1, {"kind": reserved.refusal.kind})
            raise _refused(reserved.refusal)

    def _note(self, scope: str, requests: Level | None) -> None:
        if len(self._is_far) >= _MAX_KNOWN:
            self._is_far.clear()
        self._is_far[scope] = requests is None or requests.remaining > _FAR * requests.limit

    def _without_redis(self, error: Unavailable) -> LocalLimits:
        """Raises when nothing may be admitted then."""
        log.warning("limits cannot be checked: %s", error)
        if self._local is None:
            raise Unavailable("limits cannot be checked now; try again") from error
        return self._local

    async def _settle_all(self, store: LimitStore) -> None:
        while True:
            await self._has_unsettled.wait()
            self._has_unsettled.clear()
            try:
                await self._settle_queued(store)
            except GemlineError as error:
                log.warning("usage of %d requests cannot be settled yet: %s", len(self._unsettled), error)
                await asyncio.sleep(_RETRY_S)
                self._has_unsettled.set()

    async def _settle_queued(self, store: LimitStore) -> None:
        """In the order of their ends. Raises Unavailable with what is left still queued."""
        while self._unsettled:
            claim, usage = self._unsettled[0]
            reserved = claim.reserved or Reserved(0, None, None, None)
            try:
                await store.settle(claim.scopes, reserved, claim.num_tokens, usage)
            except GemlineError:
                raise
            except Exception:
                log.exception("usage of request %s is lost", usage.request_id)
                self._dropped.add(1)
            if self._unsettled and self._unsettled[0][0] is claim:
                self._unsettled.popleft()

    async def _renew_all(self, store: LimitStore) -> None:
        while True:
            await asyncio.sleep(store.lease_s / 3)
            try:
                await store.renew([(scope.name, claim.request_id) for claim in self._claims for scope in claim.scopes])
            except GemlineError as error:
                log.warning("reservations cannot be renewed: %s", error)
            except Exception:
                log.exception("reservations cannot be renewed")


def _refused(refusal: Refusal) -> RateLimited:
    prefix, _, name = refusal.scope.partition("/")
    whose, what = f"{_KINDS.get(prefix, prefix)} {name}", _WORDS[refusal.kind]
    message = f"{whose} may have {refusal.limit} {what}, has {refusal.used} and asks for {refusal.asked} more"
    retry_after_s = None if refusal.wait_ms < 0 else refusal.wait_ms / 1e3
    if retry_after_s is None:
        message += ", which never fits"
    kind = QuotaExceeded if refusal.kind in ("token_budget", "kv_byte_seconds") else RateLimited
    return kind(message, retry_after_s=retry_after_s)
