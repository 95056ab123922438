"""How many tokens a step may carry, so that prompts do not stall streams. Knows no clock, no sequence and no torch.

A step takes about as long as its tokens and a constant number of tokens more, the part of a step that does not grow
with it (weights are read once for all). That price of a token is measured on the steps that prefill; how long a step
lasts when nothing is prefilled, its quiet duration, is measured by itself for each number of streams. Then:

- Whoever came while a stream was already running is computed beside it little by little, in what a multiple of the
  quiet duration leaves: a stream is slowed down, not stopped, however many prompts arrive. Now and then a step is left
  almost quiet, to be measured.
- Whoever was there before the streams it is computed beside, as when many arrive at once, is not to wait for them: its
  chunks take several quiet durations of one stream, for small ones would end with few streams in each step, which costs
  throughput.
- Whose tenant has nothing else here is not to wait for the streams of others: a short prompt is computed in one step.
"""

from collections import deque
from statistics import median, median_low
from typing import NamedTuple

_SLOWDOWN = 1.6  # times the quiet duration, by newcomers; leaves room for noise below twice
_STALL = 12.0  # quiet durations of one stream more, by elders
_CONSTANT = 12  # tokens that a step's constant part is worth: between 9 (int4) and 18 (int8) on two cores with AVX-512
_AT_ONCE = 64  # prompt tokens of tenants that have nothing else here
_FLOOR = 8  # prompt tokens in every other step, so that prompts come to an end beside any number of streams
_NUM_PRICES = 8  # of the last steps, and of them the median: one slow step changes nothing
_NUM_QUIET = 5
_NUM_TRUSTED = 3  # quiet steps without which their duration is not known
_PROBE_EVERY = 16  # steps; what is quiet changes with contexts, and with what else the machine does


class Load(NamedTuple):
    """What the next step is up against."""

    num_decoding: int  # sequences that will have a token each
    by_newcomer: bool  # whether the next prompt arrived after one of them had got its first token
    num_first: int = 0  # prompt tokens to be computed of tenants that have nothing else here


class Pacer:
    """Learns from what steps took."""

    def __init__(self, max_tokens: int) -> None:
        """No step carries more than `max_tokens`."""
        self._max_tokens = max_tokens
        self._prices_s: deque[float] = deque(maxlen=_NUM_PRICES)
        self._quiet_steps_s: dict[int, deque[float]] = {}
        self._quiet_s: dict[int, float] = {}  # by the number of streams, where it is known
        self._num_since_quiet = 0

    def observe(self, num_decoding: int, num_prefilled: int, duration_s: float) -> None:
        """A step computed so many tokens of streams and of prompts; one of a prompt is as good as none."""
        if num_prefilled > 1:
            self._prices_s.append(duration_s / (num_decoding + num_prefilled + _CONSTANT))
            self._num_since_quiet += 1
        elif num_decoding:
            self._num_since_quiet = 0
            steps_s = self._quiet_steps_s.setdefault(num_decoding, deque(maxlen=_NUM_QUIET))
            steps_s.append(duration_s)
            if len(steps_s) >= _NUM_TRUSTED:
                self._quiet_s[num_decoding] = median(steps_s)

    def num_tokens(self, load: Load) -> int:
        """What the next step may carry, streams and prompts together; all that is allowed where nothing decodes."""
        if not load.num_decoding:
            return self._max_tokens
        if load.by_newcomer and not load.num_first and self._num_since_quiet >= _PROBE_EVERY:
            return min(load.num_decoding + 1, self._max_tokens)
        wanted = load.num_decoding + max(_FLOOR, min(load.num_first, _AT_ONCE))
        price_s = self._price_s()
        if price_s:
            quiet_s = self._expected_s(load.num_decoding, price_s)
            limit_s = _SLOWDOWN * quiet_s
            if not load.by_newcomer:
                limit_s = max(limit_s, quiet_s + _STALL * self._expected_s(1, price_s))
            wanted = max(wanted, int(limit_s / price_s) - _CONSTANT)
        return min(wanted, self._max_tokens)

    def tokens_per_s(self, num_decoding: int) -> float | None:
        """Of a newcomer's prompt beside so many streams; None before anything is known."""
        price_s = self._price_s()
        if price_s is None:
            return None
        num_tokens = self.num_tokens(Load(num_decoding, by_newcomer=num_decoding > 0))
        return (num_tokens - num_decoding) / (price_s * (num_tokens + _CONSTANT))

    def _price_s(self) -> float | None:
        """Of a token; before any prompt was computed it is guessed from quiet steps. None before those, too."""
        if self._prices_s:
            return median_low(self._prices_s)
        return min((taken_s / (number + _CONSTANT) for number, taken_s in self._quiet_s.items()), default=None)

    def _expected_s(self, num_decoding: int, price_s: float) -> float:
        """How long so many streams alone take: as measured, or by their tokens between their measured neighbours."""
        if num_decoding in self._quiet_s:
            return self._quiet_s[num_decoding]
        by_tokens_s = (num_decoding + _CONSTANT) * price_s
        fewer_s = max((taken_s for number, taken_s in self._quiet_s.items() if number < num_decoding), default=0.0)
        more_s = min((t_s for number, t_s in self._quiet_s.items() if number > num_decoding), default=by_tokens_s)
        return max(fewer_s, min(by_tokens_s, more_s))
