"""What the HTTP front asks of the gateway's core; `Gateway` and `Answer` fit it as they are."""

from collections.abc import AsyncIterator
from typing import Protocol

from gemline.cluster.records import ModelCard
from gemline.gateway.requests import GenerationRequest, Piece, Prompt, Tenant
from gemline.telemetry import Telemetry


class AnswerStream(Protocol):
    """One answer on its way: pieces in order, the last with finish_reason and usage."""

    def __aiter__(self) -> AsyncIterator[Piece]: ...

    async def __anext__(self) -> Piece: ...

    async def aclose(self) -> None:
        """Cancel the request unless it has ended; never waits, never fails."""


class Core(Protocol):
    """The gateway without a wire. Every method raises errors of gemline.errors."""

    @property
    def telemetry(self) -> Telemetry:
        """Whose metrics the probe shows."""

    def ready(self) -> bool:
        """Whether a request for at least one model could be answered now."""

    async def authenticate(self, key: str | None) -> Tenant:
        """Whose key this is."""

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
