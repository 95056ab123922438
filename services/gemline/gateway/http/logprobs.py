"""Log-probabilities in the two forms of OpenAI's APIs. Knows no request."""

import codecs
from collections.abc import Callable, Sequence
from typing import Any

from gemline.gateway.requests import PositionLogprobs, TokenLogprob

# Takes the positions that are new since the last call, because a completion's text_offset goes on counting.
LogprobsWriter = Callable[[Sequence[PositionLogprobs]], dict[str, Any]]

MIN_LOGPROB = -9999.0  # JSON has no -infinity; OpenAI's APIs write this instead


def chat_logprobs() -> LogprobsWriter:
    """Chat's form: a list of positions."""
    return lambda positions: {"content": [_chat_position(position) for position in positions], "refusal": None}


def completion_logprobs() -> LogprobsWriter:
    """The older form: parallel lists, and for each token its offset in characters from the start of the answer."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    num_chars = 0

    def write(positions: Sequence[PositionLogprobs]) -> dict[str, Any]:
        nonlocal num_chars
        offsets = []
        for position in positions:
            offsets.append(num_chars)
            num_chars += len(decoder.decode(position.chosen.data))
        return {
            "tokens": [_name(position.chosen) for position in positions],
            "token_logprobs": [_finite(position.chosen.logprob) for position in positions],
            "top_logprobs": [_by_name(position) for position in positions],
            "text_offset": offsets,
        }

    return write


def _chat_position(position: PositionLogprobs) -> dict[str, Any]:
    return {**_chat_token(position.chosen), "top_logprobs": [_chat_token(token) for token in position.top]}


def _chat_token(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": _finite(token.logprob), "bytes": list(token.data)}


def _by_name(position: PositionLogprobs) -> dict[str, float | None] | None:
    """The likeliest, and the chosen one even if it is not among them; None where there is nothing to be likely."""
    if position.chosen.logprob is None:
        return None
    return {_name(token): _finite(token.logprob) for token in (*position.top, position.chosen)}


def _name(token: TokenLogprob) -> str:
    """A token's text, or its bytes where they are part of a character: several such have the same text."""
    try:
        return token.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.data)


def _finite(logprob: float | None) -> float | None:
    return None if logprob is None else max(logprob, MIN_LOGPROB)
