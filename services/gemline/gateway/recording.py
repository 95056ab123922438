"""The token ids of one answer, kept while it is read: its text does not give them back. Knows no session."""

from collections.abc import Iterable, Sequence
from typing import Protocol

from gemline.gateway.answer import Source
from gemline.gateway.inbox import Delivery
from gemline.gateway.routing import Life
from gemline.text.detokenizer import IncrementalDecoder
from gemline.text.tokenizer import Tokenizer


class Placed(Source, Protocol):
    """A source that says where its tokens come from."""

    @property
    def life(self) -> Life | None:
        """The life of the worker that has the request, or had it last."""


class Recording:
    """Stands between an answer and its source from `begin` on."""

    def __init__(self) -> None:
        self.prompt_ids: Sequence[int] = ()
        self._token_ids: list[int] = []

    def begin(
        self, source: Placed, prompt_ids: Sequence[int], stop_token_ids: Iterable[int], tokenizer: Tokenizer
    ) -> Source:
        """What to read the answer from."""
        self._source = source
        self.prompt_ids = prompt_ids
        self._stop_token_ids = frozenset(stop_token_ids)
        self._tokenizer = tokenizer
        return self

    @property
    def life(self) -> Life | None:
        """The life of the worker that gave the last tokens, if that is known."""
        return self._source.life

    async def take(self) -> Delivery:
        """What is new."""
        delivery = await self._source.take()
        self._token_ids += delivery.token_ids
        return delivery

    def cancel(self) -> None:
        """Nobody reads on."""
        self._source.cancel()

    def turn_ids(self, num_tokens: int, text: str, finish_reason: str) -> list[int]:
        """The ids of the model's turn, as generated, with <end_of_turn> for whatever ended the answer.

        `num_tokens` of the ids belong to the answer; `text` is what was shown of them.
        """
        ids, end_id = self._token_ids[:num_tokens], self._tokenizer.end_of_turn_id
        if ids and ids[-1] in self._stop_token_ids:
            ids.pop()
        elif finish_reason == "stop":
            ids = shown_ids(self._tokenizer, ids, text)
        return ids if ids[-1:] == [end_id] else [*ids, end_id]


def shown_ids(tokenizer: Tokenizer, ids: Sequence[int], text: str) -> list[int]:
    """The first of `ids`, as far as their text is in `text`; what a stop string cut through is encoded again."""
    decoder = IncrementalDecoder(tokenizer)
    num_chars = num_whole = num_whole_chars = 0
    for num_ids, token_id in enumerate(ids, start=1):
        num_chars += len(decoder.push((token_id,)))
        if num_chars > len(text):
            break
        if decoder.is_whole:
            num_whole, num_whole_chars = num_ids, num_chars
    rest = text[num_whole_chars:]
    return [*ids[:num_whole], *(tokenizer.encode_text(rest) if rest else ())]
