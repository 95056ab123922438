"""Prompts to token ids, by asking a tokenization worker. Knows the tokenizer's <bos> alone."""

from collections.abc import Awaitable, Sequence
from typing import TYPE_CHECKING

from gemline.cluster.records import ModelCard, WorkerRecord
from gemline.errors import InvalidRequest, Unavailable
from gemline.gateway.requests import Message, Prompt
from gemline.gateway.sampling import check_token_ids
from gemline.gateway.tokenization import TokenizationWorkers
from gemline.gateway.tokenizers import Tokenizers
from gemline.internal.v1 import tokenization_pb2

if TYPE_CHECKING:  # it has no name but in the type stubs
    from gemline.internal.v1.tokenization_pb2_grpc import TokenizationAsyncStub

_ROLES = {"assistant": "model"}  # Gemma's own word; the worker judges all others


class Encoder:
    """`timeout_s` is for one attempt on one worker."""

    def __init__(self, workers: TokenizationWorkers, tokenizers: Tokenizers, timeout_s: float) -> None:
        self._workers = workers
        self._tokenizers = tokenizers
        self._timeout_s = timeout_s

    async def encode(self, card: ModelCard, prompt: Prompt, traceparent: str = "") -> list[int]:
        """The prompt's ids, <bos> first.

        Raises InvalidRequest naming the field, and Unavailable when no tokenization worker answers.
        """
        if prompt.token_ids is not None:
            return await self._completed(card, prompt.token_ids)
        request = tokenization_pb2.EncodeRequest(trace_context=traceparent)
        if prompt.messages is not None:
            request.turns.extend(_turn(i, message) for i, message in enumerate(prompt.messages))
            if not prompt.messages:  # to the worker it would be an empty text
                raise InvalidRequest("messages is empty: it must hold at least one user message", param="messages")
            if prompt.after:
                return await self._following(card, request, prompt.after)
        else:
            request.text = _utf8("prompt", prompt.text or "")
        return await self._ask(card, request)

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


def _turn(index: int, message: Message) -> tokenization_pb2.Turn:
    content = _utf8("messages", message.content, where=f"messages[{index}].content")
    return tokenization_pb2.Turn(role=_ROLES.get(message.role, message.role), content=content)


def _utf8(param: str, text: str, where: str | None = None) -> str:
    """The text, if there is such a text: JSON can spell half a surrogate pair, UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        message = f"{where or param} is not valid Unicode: half a surrogate pair at character {error.start}"
        raise InvalidRequest(message, param=param) from error
    return text
