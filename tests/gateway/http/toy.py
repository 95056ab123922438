"""A gateway core whose answers are arithmetic: every byte is a token, and so is every letter of an answer.

The i-th letter is number (sum of the prompt's bytes + seed + i) of the alphabet, modulo 26. Words in a prompt that
begin with "!" make the core fail or wait, so that a test decides when.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field

from gemline.cluster.records import ModelCard
from gemline.cluster.session_records import SessionRecord
from gemline.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    ModelNotFound,
    SessionNotFound,
    Unauthenticated,
    Unavailable,
    WorkerLost,
)
from gemline.gateway.requests import (
    GenerationRequest,
    Piece,
    PositionLogprobs,
    Prompt,
    SamplingOptions,
    Tenant,
    TokenLogprob,
    Usage,
)
from gemline.gateway.sampling import check_sampling, check_token_ids, resolve_sampling
from gemline.gateway.session_checks import check_limit, check_metadata, check_ttl
from gemline.gateway.sessions import Session, SessionList
from gemline.telemetry import Telemetry, off

KEY = "gk_toy"
CARD = ModelCard("toy/letters", "0" * 64, 64, 256, (0,), "1" * 64, "float32", "int8", "float8_e4m3")
PIECES_BEFORE_LOSS = 3
BODY_LIMIT_BYTES = 200_000


def answer_text(prompt: str, num_tokens: int, seed: int = 0) -> str:
    """The toy's answer, done by hand."""
    start = sum(prompt.encode()) + seed
    return "".join(chr(97 + (start + index) % 26) for index in range(num_tokens))


def prompt_bytes(prompt: Prompt) -> bytes:
    if prompt.messages is not None:
        return "".join(message.content for message in prompt.messages).encode()
    return bytes(prompt.token_ids) if prompt.token_ids is not None else (prompt.text or "").encode()


@dataclass
class ToyAnswer:
    """One answer; remembers whether it was cancelled."""

    request: GenerationRequest
    prompt: bytes
    text: str
    finish_reason: str
    cancelled: bool = False
    ended: bool = False
    _pieces: AsyncIterator[Piece] | None = None

    def __aiter__(self) -> "ToyAnswer":
        return self

    async def __anext__(self) -> Piece:
        if self._pieces is None:
            self._pieces = self._generate()
        return await anext(self._pieces)

    async def aclose(self) -> None:
        self.cancelled = self.cancelled or not self.ended

    async def _generate(self) -> AsyncIterator[Piece]:
        if b"!silent" in self.prompt:
            await asyncio.Event().wait()
        for index, letter in enumerate(self.text):
            if b"!lost" in self.prompt and index == PIECES_BEFORE_LOSS:
                raise WorkerLost("the worker died")
            if b"!late-bug" in self.prompt and index == PIECES_BEFORE_LOSS:
                raise RuntimeError("secret of the inside")
            if b"!hang" in self.prompt and index == 2:
                await asyncio.Event().wait()
            if b"!short" in self.prompt and index == 2:
                return
            await asyncio.sleep(0)
            yield Piece(letter, self._logprobs(index, letter))
        self.ended = True
        usage = Usage(len(self.prompt), len(self.text))
        yield Piece("", finish_reason=self.finish_reason, usage=usage)

    def _logprobs(self, index: int, letter: str) -> tuple[PositionLogprobs, ...]:
        num_top = self.request.sampling.logprobs
        if num_top is None:
            return ()
        tokens = [TokenLogprob(ord(one), one, one.encode(), -0.5 * rank) for rank, one in enumerate(letter + "_-+"[:3])]
        return (PositionLogprobs(tokens[0], tuple(tokens[:num_top])),)


@dataclass
class ToyCore:
    """The gateway's interface over ToyAnswer."""

    telemetry: Telemetry = field(default_factory=off)
    answers: list[ToyAnswer] = field(default_factory=list)
    traceparents: list[str] = field(default_factory=list)
    is_ready: bool = True

    def __post_init__(self) -> None:
        self.sessions = ToySessions(self)

    def ready(self) -> bool:
        return self.is_ready

    async def authenticate(self, key: str | None) -> Tenant:
        if key != KEY:
            raise Unauthenticated("no API key" if key is None else "nobody has this API key")
        return Tenant("toy")

    async def meet(self, tenant: Tenant) -> None:
        """Nothing is limited."""

    async def count(self, tenant: Tenant) -> None:
        """Nothing is limited."""

    def models(self, tenant: Tenant) -> tuple[ModelCard, ...]:
        return (CARD,)

    def model(self, tenant: Tenant, model_id: str) -> ModelCard:
        if model_id != CARD.model_id:
            raise ModelNotFound(f"no model is named {model_id}", param="model")
        return CARD

    async def generate(self, tenant: Tenant, request: GenerationRequest, *, traceparent: str = "") -> ToyAnswer:
        card = self.model(tenant, request.model)
        check_sampling(request.sampling, card)
        await self.tokenize(tenant, request.model, request.prompt)
        prompt = prompt_bytes(request.prompt)
        if b"!unavailable" in prompt:
            raise Unavailable("no decode worker is there")
        if b"!bug" in prompt:
            raise RuntimeError("secret of the inside")
        if b"!refuse-second" in prompt and request.request_id.endswith("-1"):
            raise Unavailable("no room for a second answer")
        answer = ToyAnswer(request, prompt, *_text(prompt, request.sampling))
        self.answers.append(answer)
        self.traceparents.append(traceparent)
        return answer

    async def tokenize(self, tenant: Tenant, model_id: str, prompt: Prompt) -> list[int]:
        card = self.model(tenant, model_id)
        if prompt.messages is not None and prompt.messages[-1].role != "user":
            raise InvalidRequest("the last message must be the user's", param="messages")
        check_token_ids("prompt", prompt.token_ids or (), card.vocab_size)
        return list(prompt_bytes(prompt))

    async def detokenize(self, tenant: Tenant, model_id: str, token_ids: tuple[int, ...]) -> str:
        check_token_ids("tokens", token_ids, self.model(tenant, model_id).vocab_size)
        return bytes(token_ids).decode(errors="replace")

    def answer_to(self, prompt: str) -> ToyAnswer:
        """The latest answer to that prompt."""
        return next(answer for answer in reversed(self.answers) if answer.prompt == prompt.encode())


@dataclass
class ToySessions:
    """Sessions of ToyCore: they count their turns and remember nothing."""

    core: ToyCore
    records: dict[str, SessionRecord] = field(default_factory=dict)

    async def create(self, tenant: Tenant, model_id: str, ttl_s: int | None, metadata: Mapping[str, str]) -> Session:
        card = self.core.model(tenant, model_id)
        check_metadata(metadata)
        ttl = check_ttl(ttl_s) or 60.0
        made = SessionRecord(f"ses_{len(self.records)}", card.model_id, "", ttl, 0, 0, ttl, metadata=dict(metadata))
        self.records[made.session_id] = made
        return Session(made, owner_present=False)

    async def get(self, tenant: Tenant, session_id: str) -> Session:
        if session_id not in self.records:
            raise SessionNotFound(f"there is no session {session_id!r}", param="session_id")
        return Session(self.records[session_id], owner_present=False)

    async def page(self, tenant: Tenant, limit: int | None = None, after: str = "") -> SessionList:
        check_limit(limit)
        return SessionList(tuple(Session(record, False) for record in self.records.values()), "")

    async def delete(self, tenant: Tenant, session_id: str) -> None:
        del self.records[(await self.get(tenant, session_id)).record.session_id]

    async def fork(
        self, tenant: Tenant, session_id: str, ttl_s: int | None, metadata: Mapping[str, str] | None
    ) -> Session:
        record = (await self.get(tenant, session_id)).record
        return await self.create(tenant, record.model_id, ttl_s, record.metadata if metadata is None else metadata)

    async def generate(
        self, tenant: Tenant, session_id: str, request: GenerationRequest, *, traceparent: str = ""
    ) -> ToyAnswer:
        await self.get(tenant, session_id)
        return await self.core.generate(tenant, request, traceparent=traceparent)


@dataclass(frozen=True)
class Front:
    """The HTTP front, served, and the core behind it."""

    url: str
    core: ToyCore


def _text(prompt: bytes, options: SamplingOptions) -> tuple[str, str]:
    if len(prompt) >= CARD.context_length:
        raise ContextLengthExceeded(f"{len(prompt)} tokens of {CARD.context_length}", param="prompt")
    params = resolve_sampling(options, CARD, len(prompt))
    start = sum(prompt) + (options.seed or 0)
    text = "".join(chr(97 + (start + index) % 26) for index in range(params.max_tokens))
    ends = [text.index(stop) for stop in options.stop if stop in text]
    return (text[: min(ends)], "stop") if ends else (text, "length")
