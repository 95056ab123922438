"""From a request's token ids to the pieces of its answer: characters made whole, stop strings found, tokens counted."""

from gemline.engine.events import FinishReason
from gemline.gateway.echo import Echo, position_of
from gemline.gateway.inbox import Delivery
from gemline.gateway.requests import Piece, PositionLogprobs, Usage
from gemline.gateway.tool_calls import CallReader, with_calls
from gemline.text.detokenizer import IncrementalDecoder
from gemline.text.stops import StopMatcher
from gemline.text.tokenizer import Tokenizer


class Assembler:
    """Of one answer. A stop string ends it, whatever the worker still sends; the text of an end token is left out."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        stops: tuple[str, ...],
        num_prompt_tokens: int,
        *,
        reads_calls: bool = False,
        echo: Echo | None = None,
    ) -> None:
        """`reads_calls`: what is said in the form of a call is one. With an `echo` the prompt stands before it all."""
        self._tokenizer = tokenizer
        self._calls = CallReader() if reads_calls else None
        self._echo = echo
        self._decoder = IncrementalDecoder(tokenizer)
        self._matcher = StopMatcher(stops) if stops else None
        self._num_prompt_tokens = num_prompt_tokens
        self._logprobs: list[PositionLogprobs] = []  # of tokens whose text was not shown yet
        self._num_found = 0
        self.num_tokens = 0  # generated, as far as the answer goes

    def push(self, delivery: Delivery) -> Piece | None:
        """The next piece, or None while there is nothing to show: half a character, half a stop string."""
        piece = self._plain(delivery)
        if piece is not None and self._calls is not None:
            piece = with_calls(self._calls, piece)
        return self._echo.push(delivery, piece) if self._echo is not None else piece

    def _plain(self, delivery: Delivery) -> Piece | None:
        if self._matcher is None:
            text, finish, num_used = self._decode(delivery), delivery.finish, len(delivery.token_ids)
        else:
            text, finish, num_used = self._scan(self._matcher, delivery)
        self.num_tokens += num_used
        self._num_found += delivery.num_cached
        if delivery.logprobs:
            self._logprobs.extend(position_of(self._tokenizer, logprobs) for logprobs in delivery.logprobs[:num_used])
        if finish is not None:
            usage = Usage(self._num_prompt_tokens, self.num_tokens, self.num_cached)
            return Piece(text, self._take_logprobs(), finish.value, usage)
        return Piece(text, self._take_logprobs()) if text else None

    @property
    def num_shown(self) -> int:
        """Generated tokens that the reader gets: none where nothing but the prompt is wanted."""
        return 0 if self._echo is not None and self._echo.is_all else self.num_tokens

    @property
    def num_cached(self) -> int:
        """Of the prompt's tokens: a worker that went on from another's may have found some of those too."""
        return min(self._num_found, self._num_prompt_tokens)

    def _decode(self, delivery: Delivery) -> str:
        text = self._decoder.push(_shown(delivery))
        return text if delivery.finish is None else text + self._decoder.finish()

    def _scan(self, matcher: StopMatcher, delivery: Delivery) -> tuple[str, FinishReason | None, int]:
        """The text to show, why the answer ends, if it does, and how many of the ids are part of it."""
        text = ""
        for num_used, token_id in enumerate(_shown(delivery), start=1):
            scanned = matcher.push(self._decoder.push((token_id,)))
            text += scanned.text
            if scanned.matched is not None:
                return text, FinishReason.STOP, num_used
        if delivery.finish is None:
            return text, None, len(delivery.token_ids)
        scanned = matcher.push(self._decoder.finish())
        finish = delivery.finish if scanned.matched is None else FinishReason.STOP
        return text + scanned.text + matcher.finish(), finish, len(delivery.token_ids)

    def _take_logprobs(self) -> tuple[PositionLogprobs, ...]:
        if not self._logprobs:
            return ()
        logprobs, self._logprobs = self._logprobs, []
        return tuple(logprobs)


def _shown(delivery: Delivery) -> list[int]:
    """The ids whose text is part of the answer: all but the id that the worker stopped at."""
    return delivery.token_ids[:-1] if delivery.finish is FinishReason.STOP else delivery.token_ids
