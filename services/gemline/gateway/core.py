"""The gateway itself: who asks, for which model, on which workers. Knows neither HTTP nor gRPC."""

import asyncio
import logging
import re
import secrets

from gemline.cluster.keys import ApiKeys
from gemline.cluster.limits import LimitStore
from gemline.cluster.public_prefixes import PublicPrefixes
from gemline.cluster.records import ModelCard, Role
from gemline.cluster.releases import ReleaseShares
from gemline.cluster.served import ServedElsewhere
from gemline.cluster.sessions import SessionStore
from gemline.cluster.workers import WorkersView
from gemline.errors import Forbidden, GemlineError, InternalError, ModelNotAllowed, Unauthenticated, Unavailable
from gemline.gateway.admission import Admission
from gemline.gateway.answer import Answer, Source
from gemline.gateway.assemble import Assembler
from gemline.gateway.catalog import Catalog
from gemline.gateway.dispatch import Dispatch, Ground
from gemline.gateway.echo import echo_of
from gemline.gateway.encoder import Encoder, prompt_param
from gemline.gateway.links import Links
from gemline.gateway.metrics import CANCELED, GatewayMetrics, Observation
from gemline.gateway.public_prefixes import PublicTokens
from gemline.gateway.quarantine import Quarantine
from gemline.gateway.recording import Recording
from gemline.gateway.releases import Releases
from gemline.gateway.requests import GenerationRequest, Prompt, Tenant
from gemline.gateway.sampling import check_sampling, resolve_sampling
from gemline.gateway.sessions import Sessions
from gemline.gateway.settings import GatewaySettings
from gemline.gateway.suspects import Suspects
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.gateway.tokenizers import Tokenizers
from gemline.internal.v1 import decode_pb2
from gemline.rpc.convert import sampling_to_proto
from gemline.rpc.options import OpenChannel, open_channel
from gemline.telemetry import Telemetry

log = logging.getLogger(__name__)

_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def new_request_id() -> str:
    """A name for one request: "req_" and 24 hex digits, never the client's own."""
    return f"req_{secrets.token_hex(12)}"


def bearer_key(authorization: str) -> str | None:
    """The key of `Bearer <key>`, as both fronts get it; None when there is none."""
    scheme, _, key = authorization.partition(" ")
    return (key.strip() or None) if scheme.lower() == "bearer" else None


class Gateway:
    """What the two public fronts need. `start` before anything else, `stop` last, all on one event loop.

    The view must have been started; it and `keys` stay their owner's. Every method raises errors of gemline.errors.
    """

    def __init__(
        self,
        settings: GatewaySettings,
        view: WorkersView,
        keys: ApiKeys,
        telemetry: Telemetry,
        store: SessionStore | None = None,
        public_prefixes: PublicPrefixes | None = None,
        limits: LimitStore | None = None,
        served: ServedElsewhere | None = None,
        release_shares: ReleaseShares | None = None,
        open_channel: OpenChannel = open_channel,
    ) -> None:
        """Without a `store` of sessions it serves none; without `public_prefixes` no block is shared across tenants;
        without `limits` nothing is limited and no usage recorded; without `served` it is fair by itself alone;
        without `release_shares` a model's oldest release serves it.
        """
        self.settings = settings
        self.telemetry = telemetry
        self._view = view
        self._keys = keys
        self._metrics = GatewayMetrics(telemetry)
        self._catalog = Catalog(view)
        self._releases = Releases(view, release_shares, lambda: self._admission.kick())
        self._links = Links(
            settings.gateway_id,
            open_channel,
            settings.connect_timeout_s,
            silence_timeout_s=settings.silence_timeout_s,
            on_change=lambda: self._admission.kick(),
            takes_part=self._releases.takes_part,
        )
        self._admission = Admission(
            lambda asking, is_first: self._links.has_room(asking.model, asking.num_tokens, is_first=is_first),
            telemetry,
            limits,
            served,
            settings.share_without_redis,
        )
        self._ground = Ground(self._links, Suspects(), Quarantine(settings.quarantine_s), settings.resume_timeout_s)
        self._workers = TokenizationWorkers(view, open_channel)
        self._tokenizers = Tokenizers(self._workers)
        self._encoder = Encoder(self._workers, self._tokenizers, telemetry, settings.encode_timeout_s)
        self._public = PublicTokens(public_prefixes, self._catalog, self._tokenizers)
        self.sessions = Sessions(self, self._catalog, view, store, telemetry)
        self._is_running = False
        self._is_draining = False

    async def start(self) -> None:
        """Attach to the workers that are there, and follow those that come and go."""
        await self._releases.start()
        self._is_running = True
        self._view.on_change(self._follow)
        self._follow()
        self._public.start()
        self._admission.start()

    def drain(self) -> None:
        """Be ready no longer. Requests that still come are served: whoever ends the fronts ends them in order."""
        self._is_draining = True

    async def stop(self) -> None:
        """End what still runs and close every connection."""
        self._is_running = False
        self._public.stop()
        self._releases.stop()
        self._tokenizers.stop()
        await self._links.stop()
        await self._workers.stop()
        await self.sessions.stop()
        await self._admission.stop()

    def ready(self) -> bool:
        """Whether a request for at least one model could be answered now."""
        return self._is_running and not self._is_draining and any(map(self._can_serve, self._catalog.cards()))

    async def authenticate(self, key: str | None) -> Tenant:
        """Whose key this is; raises Unauthenticated, and Unavailable when that cannot be found out."""
        if not key:
            raise Unauthenticated("no API key: send the header `authorization: Bearer <key>`")
        try:
            access = await self._keys.access_of(key)
        except Unavailable as error:  # it names our Redis, and whoever asks has shown no key yet
            log.warning("an API key cannot be checked: %s", error)
            raise Unavailable("API keys cannot be checked now; try again") from error
        if access is None:
            raise Unauthenticated("nobody has this API key")
        if access.tenant.is_disabled:
            raise Forbidden(f"tenant {access.tenant.tenant_id} is disabled; ask the operator")
        return Tenant.of(access)

    async def meet(self, tenant: Tenant) -> None:
        """A request of the tenant's, which `generate` or `count` will count; raises as `count`, if it is known now."""
        await self._admission.allowance.meet(tenant)

    async def count(self, tenant: Tenant) -> None:
        """One request of the tenant's, whatever it asks for, unless it is counted already.

        Raises RateLimited, and Unavailable without Redis.
        """
        await self._admission.allowance.count(tenant)

    def models(self, tenant: Tenant) -> tuple[ModelCard, ...]:
        """The models this tenant may use, by name."""
        return tuple(card for card in self._catalog.cards() if tenant.allows(card.model_id))

    def model(self, tenant: Tenant, model_id: str) -> ModelCard:
        """One of them; raises ModelNotFound, ModelNotAllowed, or Unavailable while nobody serves it."""
        card = self._catalog.card(model_id)
        if not tenant.allows(model_id):
            raise ModelNotAllowed(f"this API key may not use model {model_id!r}", param="model")
        return card

    async def generate(
        self,
        tenant: Tenant,
        request: GenerationRequest,
        *,
        traceparent: str = "",
        recording: Recording | None = None,
    ) -> Answer:
        """Start one answer, which its reader must read to the end or close.

        Raises what can be known before a token is generated; what comes later is raised from the answer.
        `traceparent` is the caller's trace (W3C), if there is one; `recording` gets the token ids.
        """
        traceparent = traceparent if _TRACEPARENT.fullmatch(traceparent) else ""
        span = self.telemetry.span("gateway", traceparent, {"gemline.request_id": request.request_id})
        observation = Observation(self._metrics, span, self._label(request.model), request.arrived_s)
        try:
            return await self._begin(tenant, request, observation, recording)
        except GemlineError as error:
            observation.end(error.code, error)
            raise
        except asyncio.CancelledError:
            observation.end(CANCELED)
            raise
        except Exception as error:
            observation.end(InternalError.code, error)
            raise

    async def tokenize(self, tenant: Tenant, model_id: str, prompt: Prompt) -> list[int]:
        """The ids that `generate` would read for this prompt."""
        return await self._encoder.encode(self.model(tenant, model_id), prompt)

    async def count_tokens(self, tenant: Tenant, model_id: str, prompt: Prompt) -> int:
        """How many they are."""
        return len(await self.tokenize(tenant, model_id, prompt))

    async def detokenize(self, tenant: Tenant, model_id: str, token_ids: tuple[int, ...]) -> str:
        """The text of these ids, control tokens by their names."""
        tokenizer = await self._tokenizers.get(self.model(tenant, model_id))
        return tokenizer.decode(token_ids, keep_control=True)

    def num_public(self, card: ModelCard, token_ids: list[int]) -> int:
        """How many of the first tokens are those of a public prefix, whose blocks all tenants share."""
        return self._public.num_public(card, token_ids)

    async def _begin(
        self, tenant: Tenant, request: GenerationRequest, observation: Observation, recording: Recording | None
    ) -> Answer:
        if not self._is_running:
            raise Unavailable("the gateway is not running; try again")
        card = self.model(tenant, request.model)
        pick = self._releases.pick(card.model_id, request.session_id or request.request_id, request.owner)
        card = card if pick is None else pick.card
        check_sampling(request.sampling, card)
        tokenizer = await self._tokenizers.get(card)
        trace_context = observation.span.traceparent
        token_ids = await self._encoder.encode(card, request.prompt, trace_context)
        sampling = resolve_sampling(request.sampling, card, len(token_ids), prompt_param=prompt_param(request.prompt))
        dispatch = Dispatch(
            self._ground,
            card,
            decode_pb2.Submit(
                request_id=request.request_id,
                token_ids=token_ids,
                num_prompt_tokens=len(token_ids),
                sampling=sampling_to_proto(sampling),
                trace_context=trace_context,
                cache_salt=tenant.cache_salt,
                num_public_tokens=self.num_public(card, token_ids),
            ),
            observation.moved,
            owner=request.owner,
            spread_by=f"{tenant.tenant_id} {request.cache_key}" if request.cache_key else "",
            release=None if pick is None else pick.release,
            on_hit=observation.hit,
        )
        assembler = Assembler(
            tokenizer,
            request.sampling.stop,
            len(token_ids),
            reads_calls=request.reads_calls,
            echo=echo_of(request, tokenizer, token_ids),
        )
        # What limits and a worker hold for it from here on its answer gives back: nothing may fail in between.
        account = await self._admission.enter(tenant, request, card, dispatch, len(token_ids), sampling.max_tokens)
        observation.begun(len(token_ids), account.waited_s)
        source: Source = dispatch
        if recording is not None:
            source = recording.begin(dispatch, token_ids, sampling.stop_token_ids, tokenizer)
        return Answer(request.request_id, len(token_ids), source, assembler, observation, account)

    def _follow(self) -> None:
        if not self._is_running:  # the view may outlive us
            return
        self._releases.follow()
        self._links.follow(self._view.workers(Role.DECODE))
        self._workers.follow()
        self._tokenizers.follow(self._catalog.cards())

    def _can_serve(self, card: ModelCard) -> bool:
        return self._links.can_serve(card) and self._workers.can_serve(card) and self._tokenizers.has(card)

    def _label(self, model_id: str) -> str:
        """The model's name for a metric: what a client makes up must not become a label."""
        return model_id if self._catalog.has_seen(model_id) else "unknown"
