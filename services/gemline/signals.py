"""What a worker tells whoever decides how many workers there are. Plain numbers; knows no engine and no Ray."""

import time
from collections import deque
from dataclasses import asdict, dataclass

WINDOW_S = 15.0  # latencies older than this say nothing of now
_MAX_SAMPLES = 512
_PERCENTILE = 0.95


@dataclass(frozen=True, slots=True)
class Signals:
    """One worker, now. What a role does not have stays 0."""

    num_running: int = 0  # requests that own blocks
    num_waiting: int = 0
    max_running: int = 0  # requests that may run at once
    queued_tokens: int = 0  # of prompts that are not computed yet
    tokens_per_s: float = 0.0  # of a prompt, beside no stream; 0: not known yet
    busy_share: float = 0.0  # of the time since it was asked last, spent in steps
    free_kv_bytes: int = 0  # those that only the prefix cache keeps among them
    kv_bytes: int = 0
    ttft_s: float = 0.0  # 95th percentile of the last WINDOW_S, from when a request came here; 0, here and below: none
    itl_s: float = 0.0  # likewise, between a stream's tokens

    def to_dict(self) -> dict[str, float]:
        """By name, as Ray Serve's `record_autoscaling_stats` gives them."""
        return asdict(self)


class Recent:
    """The 95th percentile of what was measured lately. To add costs an append; who asks pays for the rest."""

    def __init__(self, window_s: float = WINDOW_S) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, float]] = deque(maxlen=_MAX_SAMPLES)  # when (monotonic), how much

    def add(self, value: float, at_s: float) -> None:
        """One measurement, by the monotonic clock."""
        self._samples.append((at_s, value))

    def high(self, now_s: float) -> float:
        """0 when there is none."""
        values = sorted(value for at_s, value in self._samples if now_s - at_s <= self._window_s)
        return values[int(_PERCENTILE * (len(values) - 1))] if values else 0.0


class Busyness:
    """How much of the time since it was last asked a thread was at work."""

    def __init__(self) -> None:
        self._busy_s = 0.0
        self._since_s = time.monotonic()

    def add(self, duration_s: float) -> None:
        """So long it worked."""
        self._busy_s += duration_s

    def take(self, now_s: float) -> float:
        """From 0 to 1, and begin anew."""
        passed_s, busy_s = now_s - self._since_s, self._busy_s
        self._since_s, self._busy_s = now_s, 0.0
        return min(1.0, busy_s / passed_s) if passed_s > 0 else 0.0
