"""Prompts to token ids: short ones here, the others by a tokenization worker."""

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from gemline.cluster.records import ModelCard, WorkerRecord
from gemline.errors import InvalidRequest, Unavailable
from gemline.gateway.requests import Message, Prompt
from gemline.gateway.sampling import check_token_ids
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.gateway.tokenizers import Tokenizers
from gemline.internal.v1 import tokenization_pb2
from gemline.telemetry import Telemetry
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer

if TYPE_CHECKING:  # it has no name but in the type stubs
    from gemline.internal.v1.tokenization_pb2_grpc import TokenizationAsyncStub

INLINE_BYTES = 1024  # take at most 0.4 ms to encode; to ask a worker takes this process as much, and the request longer
_ROLES = {"assistant": "model"}  # Gemma's own word; the tokenizer judges all others


class Encoder:
    """Prompts of up to `inline_bytes` of text are encoded here; `timeout_s` is for one attempt on one worker."""

    def __init__(
        self,
        workers: TokenizationWorkers,
        tokenizers: Tokenizers,
        telemetry: Telemetry,
        timeout_s: float,
        inline_bytes: int = INLINE_BYTES,
    ) -> None:
        self._workers = workers
        self._tokenizers = tokenizers
        self._telemetry = telemetry
        self._timeout_s = timeout_s
        self._inline_bytes = inline_bytes

    async def encode(self, card: ModelCard, prompt: Prompt, traceparent: str = "") -> list[int]:
        """The prompt's ids, <bos> first.

        Raises InvalidRequest naming the field, and Unavailable when no tokenization worker answers.
        """
        if prompt.token_ids is not None:
            return await self._completed(card, prompt.token_ids)
        turns = None
        if prompt.messages is not None:
            if not prompt.messages:  # to the worker it would be an empty text
                raise InvalidRequest("messages is empty: it must hold at least one user message", param="messages")
            turns = [_turn(index, message) for index, message in enumerate(prompt.messages)]
        text = "" if turns is not None else _utf8("prompt", prompt.text or "")
        if self._is_for_here(text, turns or ()):
            tokenizer = await self._tokenizers.get(card)
            with self._telemetry.span("tokenize", traceparent) as span:
                token_ids = _encoded(tokenizer, text, turns, continues=bool(prompt.after))
                span.set("gemline.num_tokens", len(token_ids))
            return [*prompt.after, *token_ids]
        request = tokenization_pb2.EncodeRequest(trace_context=traceparent, text=text)
        request.turns.extend(tokenization_pb2.Turn(role=turn.role, content=turn.content) for turn in turns or ())
        return await (self._following(card, request, prompt.after) if prompt.after else self._ask(card, request))

    def _is_for_here(self, text: str, turns: Sequence[Turn]) -> bool:
        """Whether it is short, and means the same anywhere: what a system prompt does is set at the workers."""
        parts = [text, *(turn.role for turn in turns), *(turn.content for turn in turns)]
        num_chars = sum(map(len, parts))  # looked at first: what is long is not copied
        if num_chars > self._inline_bytes or sum(len(part.encode()) for part in parts) > self._inline_bytes:
            return False
        return all(turn.role != "system" for turn in turns)

    async def _following(
        self, card: ModelCard, request: tokenization_pb2.EncodeRequest, before: Sequence[int]
    ) -> list[int]:
        """The ids that are there, and those of the turns that continue them."""
        request.continues = True
        token_ids = await self._ask(card, request)
        if token_ids[:1] == [(await self._tokenizers.get(card)).bos_id]:
            raise Unavailable("the tokenization worker is of a release that cannot continue a conversation; try again")
        return [*before, *token_ids]

    async def _ask(self, card: ModelCard, request: tokenization_pb2.EncodeRequest) -> list[int]:
        def encode(stub: "TokenizationAsyncStub", record: WorkerRecord) -> Awaitable[tokenization_pb2.EncodeResponse]:
            request.epoch = record.epoch
            return stub.Encode(request, timeout=self._timeout_s)

        return list((await self._workers.call(card, encode)).token_ids)

    async def _completed(self, card: ModelCard, token_ids: tuple[int, ...]) -> list[int]:
        """Ids that the user gave, <bos> put before them unless it is there."""
        check_token_ids("prompt", token_ids, card.vocab_size)
        bos_id = (await self._tokenizers.get(card)).bos_id
        return list(token_ids) if token_ids[:1] == (bos_id,) else [bos_id, *token_ids]


def prompt_param(prompt: Prompt) -> str:
    """What the user calls the prompt."""
    return "prompt" if prompt.messages is None else "messages"


def _encoded(tokenizer: Tokenizer, text: str, turns: Sequence[Turn] | None, *, continues: bool) -> list[int]:
    """As a tokenization worker would."""
    if turns is None:
        return tokenizer.encode_prompt(text)
    return tokenizer.encode_further(turns) if continues else tokenizer.encode_chat(turns)


def _turn(index: int, message: Message) -> Turn:
    content = _utf8("messages", message.content, where=f"messages[{index}].content")
    return Turn(_ROLES.get(message.role, message.role), content)


def _utf8(param: str, text: str, where: str | None = None) -> str:
    """The text, if there is such a text: JSON can spell half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{where or param} is not valid Unicode: half a surrogate pair at character {error.start}"
        raise InvalidRequest(message, param=param) from error
    return text
