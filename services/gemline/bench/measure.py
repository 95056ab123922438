"""From the times of one request's chunks to the figures of a run, as `vllm bench serve` defines them. Pure arithmetic.

TTFT   first chunk - sent
ITL    each gap between one chunk and the next; a chunk may hold several tokens, or an empty text
E2EL   last chunk - sent
TPOT   (E2EL - TTFT) / (output tokens - 1), of requests with more than one output token
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from gemline.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Record:
    """One request. Times are seconds of one clock; `error` is None when it came to its end."""

    sent_s: float
    chunk_times_s: tuple[float, ...] = ()
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0
    error: str | None = None
    counted_by_server: bool = True  # False: the server told no usage, and a chunk was taken for a token

    @property
    def ttft_s(self) -> float:
        """Time to the first chunk."""
        return self.chunk_times_s[0] - self.sent_s

    @property
    def latency_s(self) -> float:
        """Time to the last chunk (E2EL)."""
        return self.chunk_times_s[-1] - self.sent_s

    @property
    def itl_s(self) -> tuple[float, ...]:
        """The gaps after the first chunk."""
        return tuple(after - before for before, after in pairwise(self.chunk_times_s))

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None when there is but one."""
        if self.num_output_tokens < 2:
            return None
        return (self.latency_s - self.ttft_s) / (self.num_output_tokens - 1)


@dataclass(frozen=True, slots=True)
class Objective:
    """A service level in milliseconds that a good request keeps. All are most values of one request."""

    ttft_ms: float = math.inf
    tpot_ms: float = math.inf
    itl_ms: float = math.inf  # of the request's longest gap
    e2el_ms: float = math.inf

    @classmethod
    def parse(cls, words: Iterable[str]) -> "Objective":
        """From NAME:MILLISECONDS; raises ConfigurationError naming --goodput."""
        limits: dict[str, float] = {}
        for word in words:
            name, _, value = word.partition(":")
            limits[_name(name, word)] = _milliseconds(value, word)
        return cls(**limits)

    def is_met_by(self, record: Record) -> bool:
        """Whether that request came to its end and kept every limit."""
        if record.error is not None:
            return False
        return (
            record.ttft_s * 1e3 <= self.ttft_ms
            and (record.tpot_s or 0.0) * 1e3 <= self.tpot_ms
            and max(record.itl_s, default=0.0) * 1e3 <= self.itl_ms
            and record.latency_s * 1e3 <= self.e2el_ms
        )


def _name(name: str, word: str) -> str:
    if name not in ("ttft", "tpot", "itl", "e2el"):
        raise ConfigurationError(f"--goodput {word!r}: write ttft:MS, tpot:MS, itl:MS or e2el:MS")
    return f"{name}_ms"


def _milliseconds(text: str, word: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ConfigurationError(f"--goodput {word!r}: {text!r} is no positive number of milliseconds")
    return value


class Spread(NamedTuple):
    """How values lie, in milliseconds."""

    mean: float
    p50: float
    p90: float
    p99: float
    max: float


def percentile(ordered: Sequence[float], percent: float) -> float:
    """Of values in ascending order, linear between the nearest two (numpy's default)."""
    at = (len(ordered) - 1) * percent / 100
    below = math.floor(at)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (at - below)


def spread_ms(values_s: Iterable[float]) -> Spread | None:
    """None of no values."""
    ordered = sorted(value * 1e3 for value in values_s)
    if not ordered:
        return None
    p50, p90, p99 = (percentile(ordered, percent) for percent in (50, 90, 99))
    return Spread(math.fsum(ordered) / len(ordered), p50, p90, p99, ordered[-1])


@dataclass(frozen=True, slots=True)
class Summary:
    """A run. Rates are per second of its whole duration; failed requests count in nothing but `errors`."""

    num_requests: int
    num_ok: int
    errors: dict[str, int]  # reason -> how many
    duration_s: float
    prompt_tokens: int
    output_tokens: int
    ttft_ms: Spread | None
    tpot_ms: Spread | None
    itl_ms: Spread | None
    e2el_ms: Spread | None
    num_good: int | None  # None: no objective was given
    counted_by_server: bool

    @property
    def num_failed(self) -> int:
        """Requests without a whole answer."""
        return self.num_requests - self.num_ok

    @property
    def request_rate(self) -> float:
        """Whole answers a second."""
        return _rate(self.num_ok, self.duration_s)

    @property
    def output_rate(self) -> float:
        """Output tokens a second."""
        return _rate(self.output_tokens, self.duration_s)

    @property
    def total_rate(self) -> float:
        """Prompt and output tokens a second."""
        return _rate(self.prompt_tokens + self.output_tokens, self.duration_s)

    @property
    def goodput(self) -> float | None:
        """Requests a second that kept the objective."""
        return None if self.num_good is None else _rate(self.num_good, self.duration_s)


def summarize(records: Sequence[Record], duration_s: float, objective: Objective | None = None) -> Summary:
    """The figures of a run that took `duration_s`."""
    done = [record for record in records if record.error is None]
    tpots = (record.tpot_s for record in done)
    return Summary(
        num_requests=len(records),
        num_ok=len(done),
        errors=dict(Counter(record.error for record in records if record.error is not None).most_common()),
        duration_s=duration_s,
        prompt_tokens=sum(record.num_prompt_tokens for record in done),
        output_tokens=sum(record.num_output_tokens for record in done),
        ttft_ms=spread_ms(record.ttft_s for record in done),
        tpot_ms=spread_ms(tpot for tpot in tpots if tpot is not None),
        itl_ms=spread_ms(gap for record in done for gap in record.itl_s),
        e2el_ms=spread_ms(record.latency_s for record in done),
        num_good=None if objective is None else sum(objective.is_met_by(record) for record in done),
        counted_by_server=all(record.counted_by_server for record in done),
    )


def _rate(amount: float, duration_s: float) -> float:
    return amount / duration_s if duration_s > 0 else 0.0
