"""Sessions as a gateway serves them: whose they are, which model answers, and what a turn adds. Knows no wire."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple, Protocol

from gemline.cluster.records import ModelCard, Role
from gemline.cluster.session_records import Residence, SessionRecord, Turn
from gemline.cluster.sessions import SessionStore
from gemline.cluster.workers import WorkersView
from gemline.engine.block_hash import Roots, extend_hashes
from gemline.errors import InvalidRequest, Unavailable
from gemline.gateway.answer import Answer
from gemline.gateway.catalog import Catalog
from gemline.gateway.kv_layout import kv_layout
from gemline.gateway.recording import Recording
from gemline.gateway.requests import GenerationRequest, Tenant
from gemline.gateway.routing import Life
from gemline.gateway.session_checks import DEFAULT_TTL_S, check_limit, check_metadata, check_ttl
from gemline.gateway.turn_answer import TurnAnswer
from gemline.gateway.turns import INSIST_S, Turns
from gemline.telemetry import Telemetry

BLOCK_SIZE = 16  # of the blocks that a session's tip is the hash of


class Generator(Protocol):
    """What answers a turn: the core."""

    async def generate(
        self, tenant: Tenant, request: GenerationRequest, *, traceparent: str, recording: Recording
    ) -> Answer:
        """Start one answer."""

    def num_public(self, card: ModelCard, token_ids: list[int]) -> int:
        """How many of its first tokens are those of a public prefix."""


class Session(NamedTuple):
    """A session, and whether the worker that has its keys and values is still there."""

    record: SessionRecord
    owner_present: bool


class SessionList(NamedTuple):
    """A page; `after` asks for the next one, empty on the last."""

    sessions: tuple[Session, ...]
    after: str


class Sessions:
    """Every method raises SessionNotFound for a session that is not the tenant's, Unavailable while Redis is away."""

    def __init__(
        self,
        core: Generator,
        catalog: Catalog,
        view: WorkersView,
        store: SessionStore | None,
        telemetry: Telemetry,
        insist_s: float = INSIST_S,
    ) -> None:
        """Without a store there are none. `insist_s`: how long an answer's end waits for a Redis that is away."""
        self._core = core
        self._catalog = catalog
        self._view = view
        self._known_store = store
        self._turns = None if store is None else Turns(store, telemetry, insist_s)

    async def create(self, tenant: Tenant, model_id: str, ttl_s: int | None, metadata: Mapping[str, str]) -> Session:
        """A new, empty one."""
        card = self._catalog.card(model_id)
        check_metadata(metadata)
        ttl = check_ttl(ttl_s) or DEFAULT_TTL_S
        made = await self._store.create(tenant.tenant_id, card.model_id, card.tokenizer_sha256, ttl, metadata)
        return self._session(made)

    async def get(self, tenant: Tenant, session_id: str) -> Session:
        """One of the tenant's."""
        return self._session(await self._store.get(tenant.tenant_id, session_id))

    async def page(self, tenant: Tenant, limit: int | None = None, after: str = "") -> SessionList:
        """The tenant's, the newest first."""
        page = await self._store.page(tenant.tenant_id, check_limit(limit), after)
        return SessionList(tuple(map(self._session, page.records)), page.after)

    async def delete(self, tenant: Tenant, session_id: str) -> None:
        """End it. A turn that runs goes on, but has no session to be added to."""
        await self._store.delete(tenant.tenant_id, session_id)

    async def fork(
        self, tenant: Tenant, session_id: str, ttl_s: int | None, metadata: Mapping[str, str] | None
    ) -> Session:
        """A new one with the turns that this one has now; it shares their blocks in every prefix cache."""
        if metadata is not None:
            check_metadata(metadata)
        forked = await self._store.fork(tenant.tenant_id, session_id, check_ttl(ttl_s), metadata)
        return self._session(forked)

    async def generate(
        self, tenant: Tenant, session_id: str, request: GenerationRequest, *, traceparent: str = ""
    ) -> TurnAnswer:
        """Answer the request's messages, which follow what the session holds; its model may be left empty.

        Raises Conflict while another turn of the session runs.
        """
        turns = self._running_turns
        turn = await turns.begin(tenant.tenant_id, session_id)
        try:
            card = self._card_of(turn.record, request.model)
            recording = Recording()
            whole = _following(turn, request)
            answer = await self._core.generate(tenant, whole, traceparent=traceparent, recording=recording)
        except Exception:
            await turns.release(turn)
            raise
        except BaseException:
            turns.abandon(turn)
            raise
        return TurnAnswer(answer, recording, turn, turns, partial(self._save, tenant, card, turn))

    async def stop(self) -> None:
        """The gateway ends, and every answer has."""
        if self._turns is not None:
            await self._turns.stop()

    async def _save(self, tenant: Tenant, card: ModelCard, turn: Turn, token_ids: list[int], life: Life | None) -> None:
        whole = [*turn.token_ids, *token_ids]
        workers = self._view.workers(Role.DECODE)  # those of another release may serve another revision
        card = next((it.model for it in workers if Life(it.worker_id, it.epoch) == life), card)
        num_public = self._core.num_public(card, whole) // BLOCK_SIZE
        residence = _residence(card, Roots.of(card.revision, tenant.cache_salt, num_public), whole, life)
        await self._running_turns.save(turn, token_ids, residence)

    def _card_of(self, record: SessionRecord, asked: str) -> ModelCard:
        if asked and asked != record.model_id:
            raise InvalidRequest(
                f"session {record.session_id} is of model {record.model_id!r}, not {asked[:200]!r}", param="model"
            )
        card = self._catalog.card(record.model_id)
        if card.tokenizer_sha256 != record.tokenizer_sha256:
            raise InvalidRequest(
                f"session {record.session_id} was made when model {record.model_id!r} had another tokenizer, and cannot"
                " go on; make a new one",
                param="session_id",
            )
        return card

    def _session(self, record: SessionRecord) -> Session:
        home = record.residence
        lives = {(worker.worker_id, worker.epoch) for worker in self._view.workers(Role.DECODE)}
        return Session(record, (home.worker_id, home.epoch) in lives)

    @property
    def _store(self) -> SessionStore:
        if self._known_store is None:
            raise Unavailable("this gateway keeps no sessions")
        return self._known_store

    @property
    def _running_turns(self) -> Turns:
        if self._turns is None:
            raise Unavailable("this gateway keeps no sessions")
        return self._turns


def _residence(card: ModelCard, roots: Roots, token_ids: list[int], life: Life | None) -> Residence:
    layout, hashes, num_tokens = kv_layout(card), list[bytes](), len(token_ids)
    extend_hashes(hashes, roots, token_ids, BLOCK_SIZE, num_tokens // BLOCK_SIZE)
    return Residence(
        worker_id=life.worker_id if life else "",
        epoch=life.epoch if life else 0,
        tip=hashes[-1].hex() if hashes else "",
        window_start=layout.window_start(num_tokens),
        num_bytes=layout.num_bytes(num_tokens),
    )


def _following(turn: Turn, request: GenerationRequest) -> GenerationRequest:
    """The request as one of the whole conversation."""
    home = turn.record.residence
    return replace(
        request,
        model=turn.record.model_id,
        prompt=replace(request.prompt, after=turn.token_ids),
        owner=Life(home.worker_id, home.epoch) if home.worker_id else None,
        session_id=turn.record.session_id,
    )
