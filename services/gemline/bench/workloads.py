"""Prompts to send: random, in sessions, or with a shared prefix; the same for the same seed. Sends nothing.

Sizes are in tokens. As ids they are exact: Gemma's <bos> first, then ids drawn from a range that every Gemma vocabulary
has. As text they are common words, of which real Gemma tokenizers make one token each; other tokenizers make more.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from gemline.errors import ConfigurationError

Kind = Literal["random", "session", "shared-prefix"]
KINDS: tuple[Kind, ...] = ("random", "session", "shared-prefix")

BOS_ID = 2
FIRST_ID = 260  # below it may stand control tokens and bytes
_COMMON = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its "
    "about than into them can only other time new some could these two may first then do any like my now over such "
    "our man me even most made after also well back must through years much where your way down should because long"
)
WORDS = tuple(_COMMON.split())


class Span(NamedTuple):
    """A closed range of sizes, written MIN or MIN-MAX."""

    least: int
    most: int

    @classmethod
    def parse(cls, option: str, text: str) -> "Span":
        """Raises ConfigurationError naming the option."""
        least, dash, most = text.partition("-")
        if not (least.isdecimal() and (most.isdecimal() or not dash)):
            raise ConfigurationError(f"{option} is {text!r}: write MIN or MIN-MAX, such as 128-256")
        span = cls(int(least), int(most or least))
        if not 1 <= span.least <= span.most:
            raise ConfigurationError(f"{option} is {text!r}: it must hold 1 <= MIN <= MAX")
        return span

    def draw(self, rng: random.Random) -> int:
        """One size of the range, each as likely as the others."""
        return rng.randint(self.least, self.most)


@dataclass(frozen=True, slots=True)
class WorkloadOptions:
    """What to make. A session's first turn is the common prefix and a question; every turn asks `prompt` tokens more.

    `num_sessions` and `num_turns` are for "session" alone, which makes their product of requests; `num_prefix_tokens`
    is for "session" (0 for none) and "shared-prefix".
    """

    kind: Kind
    prompt: Span
    num_requests: int = 32
    num_sessions: int = 8
    num_turns: int = 5
    num_prefix_tokens: int = 0
    as_ids: bool = True
    vocab_size: int = 1000  # of drawn ids: [FIRST_ID, vocab_size)
    seed: int = 0

    def __post_init__(self) -> None:
        sizes = {"--num-requests": self.num_requests, "--sessions": self.num_sessions, "--turns": self.num_turns}
        for option, value in sizes.items():
            if value < 1:
                raise ConfigurationError(f"{option} is {value}: it must be at least 1")
        if self.num_prefix_tokens < 0:
            raise ConfigurationError(f"--prefix-tokens is {self.num_prefix_tokens}: it cannot be negative")
        if self.kind == "shared-prefix" and not self.num_prefix_tokens:
            raise ConfigurationError("--workload shared-prefix needs --prefix-tokens of at least 1")
        if self.vocab_size <= FIRST_ID:
            raise ConfigurationError(f"--vocab-size is {self.vocab_size}: it must be over {FIRST_ID}")


@dataclass(frozen=True, slots=True)
class Ask:
    """What one turn adds to what was said before: ids, or else text."""

    token_ids: tuple[int, ...] = ()
    text: str = ""

    @property
    def num_tokens(self) -> int:
        """Exact for ids, words for text."""
        return len(self.token_ids) or len(self.text.split())


def plan(
    kind: str,
    prompt_tokens: str,
    *,
    num_requests: int | None = None,
    num_sessions: int | None = None,
    num_turns: int | None = None,
    num_prefix_tokens: int | None = None,
    as_text: bool | None = None,
    chat: bool = False,
    vocab_size: int = 1000,
    seed: int = 0,
) -> WorkloadOptions:
    """Options as a user gives them, None for a default.

    Raises ConfigurationError naming the option that is wrong or has no meaning in this workload.
    """
    chosen = next((known for known in KINDS if known == kind), None)
    if chosen is None:
        raise ConfigurationError(f"--workload is {kind!r}: it must be one of {', '.join(KINDS)}")
    if chat and as_text is False:
        raise ConfigurationError("--endpoint chat cannot send --ids: its messages are text")
    session = chosen == "session"
    _refuse(chosen, {"--num-requests": num_requests} if session else {"--sessions": num_sessions, "--turns": num_turns})
    _refuse(chosen, {"--prefix-tokens": num_prefix_tokens} if chosen == "random" else {})
    return WorkloadOptions(
        kind=chosen,
        prompt=Span.parse("--prompt-tokens", prompt_tokens),
        num_requests=_given(num_requests, 32),
        num_sessions=_given(num_sessions, 8),
        num_turns=_given(num_turns, 5),
        num_prefix_tokens=0 if chosen == "random" else _given(num_prefix_tokens, 256),
        as_ids=not (session or chat) if as_text is None else not as_text,
        vocab_size=vocab_size,
        seed=seed,
    )


def _refuse(kind: Kind, options: dict[str, int | None]) -> None:
    for option, value in options.items():
        if value is not None:
            raise ConfigurationError(f"{option} has no meaning with --workload {kind}")


def _given(value: int | None, default: int) -> int:
    return default if value is None else value


Conversation = tuple[Ask, ...]  # its turns are sent one after another, each with those before it


def make(options: WorkloadOptions) -> list[Conversation]:
    """The conversations, in the order of their start; all but sessions have one turn."""
    rng = random.Random(options.seed)
    writer = _Writer(options, rng)
    if options.kind == "session":
        prefix = writer.write(options.num_prefix_tokens)
        return [_session(options, writer, rng, prefix) for _ in range(options.num_sessions)]
    prefix = writer.write(options.num_prefix_tokens if options.kind == "shared-prefix" else 0)
    return [(writer.opening(prefix, options.prompt.draw(rng)),) for _ in range(options.num_requests)]


def _session(
    options: WorkloadOptions, writer: "_Writer", rng: random.Random, prefix: Sequence[str | int]
) -> Conversation:
    first = writer.opening(prefix, options.prompt.draw(rng))
    return first, *(writer.turn(options.prompt.draw(rng)) for _ in range(options.num_turns - 1))


@dataclass(frozen=True, slots=True)
class _Writer:
    options: WorkloadOptions
    rng: random.Random

    def write(self, num_tokens: int) -> Sequence[str | int]:
        if self.options.as_ids:
            return [self.rng.randrange(FIRST_ID, self.options.vocab_size) for _ in range(num_tokens)]
        return self.rng.choices(WORDS, k=num_tokens)

    def opening(self, prefix: Sequence[str | int], num_tokens: int) -> Ask:
        """A first prompt of the prefix and so many tokens more; <bos> is one of the prefix's, or else of these."""
        if not self.options.as_ids:
            return self._ask([*prefix, *self.write(num_tokens)])
        return self._ask([BOS_ID, *[*prefix, *self.write(num_tokens)][1:]])

    def turn(self, num_tokens: int) -> Ask:
        return self._ask(self.write(num_tokens))

    def _ask(self, tokens: Sequence[str | int]) -> Ask:
        if self.options.as_ids:
            return Ask(token_ids=tuple(int(token) for token in tokens))
        return Ask(text=" ".join(str(token) for token in tokens))
