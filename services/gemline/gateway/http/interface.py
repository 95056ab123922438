"""What the HTTP front asks of the gateway's core; `Gateway` and `Answer` fit it as they are."""

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from gemline.cluster.records import ModelCard
from gemline.gateway.requests import GenerationRequest, Piece, Prompt, Tenant
from gemline.gateway.sessions import Session, SessionList
from gemline.telemetry import Telemetry


class AnswerStream(Protocol):
    """One answer on its way: pieces in order, the last with finish_reason and usage."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None:
        """Cancel the request unless it has ended; never waits, never fails."""


class Generator(Protocol):
    """What answers requests: the core, or one session of it."""

    async def generate(self, tenant: Tenant, request: GenerationRequest, *, traceparent: str = "") -> AnswerStream:
        """Start one answer."""


class SessionCore(Protocol):
    """The conversations that the gateway keeps; `Sessions` fits it. Raises SessionNotFound for another tenant's."""

    async def create(self, tenant: Tenant, model_id: str, ttl_s: int | None, metadata: Mapping[str, str]) -> Session:
        """A new, empty one."""

    async def get(self, tenant: Tenant, session_id: str) -> Session:
        """One of the tenant's."""

    async def page(self, tenant: Tenant, limit: int | None = None, after: str = "") -> SessionList:
        """The tenant's, the newest first."""

    async def delete(self, tenant: Tenant, session_id: str) -> None:
        """End it."""

    async def fork(
        self, tenant: Tenant, session_id: str, ttl_s: int | None, metadata: Mapping[str, str] | None
    ) -> Session:
        """A new one with the same turns."""

    async def generate(
        self, tenant: Tenant, session_id: str, request: GenerationRequest, *, traceparent: str = ""
    ) -> AnswerStream:
        """Answer the request's messages, which follow what the session holds."""


class Core(Protocol):
    """The gateway without a wire. Every method raises errors of gemline.errors."""

    @property
    def telemetry(self) -> Telemetry:
        """Whose metrics the probe shows."""

    @property
    def sessions(self) -> SessionCore:
        """The conversations it keeps."""

    def ready(self) -> bool:
        """Whether a request for at least one model could be answered now."""

    async def authenticate(self, key: str | None) -> Tenant:
        """Whose key this is."""

    async def meet(self, tenant: Tenant) -> None:
        """A request of the tenant's, before anything is known of it."""

    async def count(self, tenant: Tenant) -> None:
        """One request of the tenant's, unless it is counted already."""

    def models(self, tenant: Tenant) -> tuple[ModelCard, ...]:
        """The models this tenant may use."""

    def model(self, tenant: Tenant, model_id: str) -> ModelCard:
        """One of them."""

    async def generate(self, tenant: Tenant, request: GenerationRequest, *, traceparent: str = "") -> AnswerStream:
        """Start one answer."""

    async def tokenize(self, tenant: Tenant, model_id: str, prompt: Prompt) -> list[int]:
        """The ids that `generate` would read for this prompt."""

    async def detokenize(self, tenant: Tenant, model_id: str, token_ids: tuple[int, ...]) -> str:
        """The text of these ids."""
