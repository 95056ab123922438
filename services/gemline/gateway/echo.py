"""A prompt that stands before its answer, with its tokens' log-probabilities if they are wanted. Knows no engine."""

from collections.abc import Sequence
from dataclasses import replace

from gemline.gateway.inbox import Delivery
from gemline.gateway.requests import GenerationRequest, Piece, PositionLogprobs, TokenLogprob
from gemline.internal.v1 import sampling_pb2
from gemline.text.tokenizer import Tokenizer

_BOS = "<bos>"


class Echo:
    """Of one answer. The prompt is what the user wrote: a <bos> that we put before it is not shown."""

    def __init__(
        self, tokenizer: Tokenizer, text: str, prompt_ids: Sequence[int], *, is_bos_ours: bool, is_all: bool
    ) -> None:
        """`is_all`: nothing but the prompt is wanted, and the one token that was generated with it is left out."""
        self._tokenizer = tokenizer
        self._text = text
        self._first_id = prompt_ids[0]
        self._is_bos_ours = is_bos_ours
        self.is_all = is_all
        self._is_due = True
        self._positions: tuple[PositionLogprobs, ...] = ()

    def push(self, delivery: Delivery, piece: Piece | None) -> Piece | None:
        """The piece, the prompt put before the first."""
        if delivery.prompt_logprobs:
            self._positions = self._prompt_positions(delivery.prompt_logprobs)
        if piece is None:
            return None
        if self.is_all:
            usage = piece.usage and replace(piece.usage, completion_tokens=0)
            piece = piece._replace(text="", logprobs=(), usage=usage, finish_reason=piece.finish_reason and "length")
        if self._is_due:
            self._is_due = False
            piece = piece._replace(text=self._text + piece.text, logprobs=self._positions + piece.logprobs)
        return piece

    def _prompt_positions(self, found: Sequence[sampling_pb2.Logprobs]) -> tuple[PositionLogprobs, ...]:
        """One for each token that is shown; nothing is known of the very first, for nothing stands before it."""
        positions = tuple(position_of(self._tokenizer, logprobs) for logprobs in found)
        if self._is_bos_ours:
            return positions
        data = self._tokenizer.token_bytes(self._first_id)
        first = TokenLogprob(self._first_id, data.decode(errors="replace"), data, None)
        return (PositionLogprobs(first, ()), *positions)


def echo_of(request: GenerationRequest, tokenizer: Tokenizer, prompt_ids: Sequence[int]) -> Echo | None:
    """What stands before the request's answer, if anything does."""
    if not request.sampling.echo:
        return None
    prompt = request.prompt
    if prompt.text is not None:
        text, is_bos_ours = prompt.text, not prompt.text.startswith(_BOS)
    else:
        given = prompt.token_ids or ()
        text, is_bos_ours = tokenizer.decode(given, keep_control=True), len(given) < len(prompt_ids)
    is_all = request.sampling.max_tokens == 0
    return Echo(tokenizer, text, prompt_ids, is_bos_ours=is_bos_ours, is_all=is_all)


def position_of(tokenizer: Tokenizer, message: sampling_pb2.Logprobs) -> PositionLogprobs:
    """One position in words."""

    def token(token_id: int, logprob: float) -> TokenLogprob:
        data = tokenizer.token_bytes(token_id)
        return TokenLogprob(token_id, data.decode(errors="replace"), data, logprob)

    chosen, *top = map(token, message.token_ids, message.values)
    return PositionLogprobs(chosen, tuple(top))
