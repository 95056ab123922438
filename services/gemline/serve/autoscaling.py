"""How many workers of a role there should be. A pure function of what they say and what was decided; knows no Ray.

Prefill and decode are decided apart, each by what it runs out of first, so their ratio follows the load:

    decode   sequences against places (FILL of max_running), KV bytes against memory (KV_FILL)
    prefill  time in steps against time (BUSY), queued prompts against how fast they are computed (QUEUE_SHARE of the
             bound on TTFT)

A decode worker that prefills for itself is held to both. What waits in gateways is not seen here, and need not be: a
gateway sends a worker what it begins soon, so workers that are full are the sign of it.

Being late or overfull teaches how much a worker really carries (`Memory.learned`): each is given HEADROOM of what it
did then, for FORGET_S. What a decode worker does is counted in tokens a second, for the fewer workers there are, the
longer sequences stay, and their number would call for workers and send them away in turn.

Against flapping: more workers than now must have been needed for `up_after_s` on end, fewer for `down_after_s`, and
fewer means that DOWN of what they carry is enough, so that what was taken away is not needed at once again.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil
from statistics import fmean
from typing import NamedTuple

from gemline.cluster.records import Role
from gemline.errors import ConfigurationError
from gemline.signals import WINDOW_S, Signals

FILL = 0.75  # of a decode worker's places: a burst finds room while the next worker starts
KV_FILL = 0.85  # of its KV memory
BUSY = 0.7  # of a prefill worker's time: beyond, queues grow much faster than load
QUEUE_SHARE = 0.5  # of the bound on TTFT may pass in a queue; the rest is for the prompt itself
DOWN = 0.8  # of what is carried at most must do for fewer workers
HEADROOM = 0.85  # of what a worker was late with
LEAST_LOAD = 0.4  # of its capacity: whoever is late with less is slow by itself, and more workers would not help
FORGET_S = 1800.0
MOST_AT_ONCE = 2.0  # times the present number
_EPS = 1e-9


@dataclass(frozen=True, slots=True)
class Scaling:
    """Between how many workers, within which latencies, how fast. Raises ConfigurationError for what cannot be."""

    role: str
    min_replicas: int
    max_replicas: int
    ttft_slo_s: float = 2.0  # 95th percentile at the worker
    itl_slo_s: float = 0.2
    prefills: bool = False  # a decode worker that prefills for itself
    up_after_s: float = 5.0
    down_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            given = f"{self.min_replicas}-{self.max_replicas}"
            raise ConfigurationError(f"{self.role} workers {given}: at least 1, and the second not below the first")
        for name in ("ttft_slo_s", "itl_slo_s"):
            if not getattr(self, name) > 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, must be above 0", param=name)
        for name in ("up_after_s", "down_after_s"):
            if not getattr(self, name) >= 0:
                raise ConfigurationError(f"{name} is {getattr(self, name)}, must not be below 0", param=name)

    def clip(self, num: int) -> int:
        """The nearest number of workers that is allowed."""
        return max(self.min_replicas, min(num, self.max_replicas))

    def to_dict(self) -> dict[str, object]:
        """Plain values, for Ray."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Memory:
    """What outlives a decision. Times are by whatever clock `decide` is given."""

    learned: float | None = None  # the rate that one worker carries in time; None: nothing was learned
    learned_s: float = 0.0
    settled_since_s: float | None = None  # since when as many serve as should; None: they do not
    up_since_s: float | None = None
    down_since_s: float | None = None
    down_to: int = 0  # the most that was needed since


class Decision(NamedTuple):
    """How many there should be, and what to remember."""

    num_replicas: int
    memory: Memory


class Pressure(NamedTuple):
    """What one role's workers are up against."""

    work: float  # of all, in a unit of which one worker carries `capacity`
    capacity: float
    rate: float  # what all do: of decode workers tokens a second, of prefill workers their time in steps
    floor: float  # workers that memory or the queue needs, whatever the work
    lateness: float  # the worst latency over its bound; 0: nothing was measured


def decide(signals: Sequence[Signals], num_target: int, scaling: Scaling, memory: Memory, now_s: float) -> Decision:
    """The number of workers from now on; `signals` are of those that serve, `num_target` was decided last.

    Without any signal nothing changes but what the bounds demand. While workers are still being started (or ended)
    no more are started, and nothing is learned.
    """
    if not signals:
        return Decision(scaling.clip(num_target), memory)
    is_settled = len(signals) >= num_target
    settled_since_s = memory.settled_since_s if memory.settled_since_s is not None else now_s
    memory = replace(memory, settled_since_s=settled_since_s if is_settled else None)
    pressure = _pressure(signals, scaling)
    if memory.learned is not None and now_s - memory.learned_s > FORGET_S:
        memory = replace(memory, learned=None)
    up = scaling.clip(min(_needed(pressure, memory), ceil(MOST_AT_ONCE * num_target)))
    # Latencies are of the last WINDOW_S: until then they tell of when there were fewer.
    is_known = is_settled and now_s - settled_since_s >= WINDOW_S
    is_late = is_known and _is_late_by_load(pressure, len(signals))
    if is_late:
        up = scaling.clip(max(up, num_target + 1))
    if up > num_target:
        memory = replace(memory, down_since_s=None)
        if not is_settled:
            return Decision(num_target, replace(memory, up_since_s=None))
        since_s = now_s if memory.up_since_s is None else memory.up_since_s
        if now_s - since_s < scaling.up_after_s:
            return Decision(num_target, replace(memory, up_since_s=since_s))
        if is_late or (is_known and _is_overfull(pressure, len(signals), scaling)):
            memory = replace(memory, learned=HEADROOM * pressure.rate / len(signals), learned_s=now_s)
        return Decision(up, replace(memory, up_since_s=None, settled_since_s=None))
    return _shrink(pressure, num_target, scaling, replace(memory, up_since_s=None), now_s)


def _shrink(pressure: Pressure, num_target: int, scaling: Scaling, memory: Memory, now_s: float) -> Decision:
    """Down to the most that was needed while fewer than now were."""
    if num_target > scaling.max_replicas:
        return Decision(scaling.max_replicas, replace(memory, down_since_s=None))
    down = scaling.clip(_needed(pressure, memory, spare=DOWN))
    if down >= num_target or pressure.lateness > DOWN:
        return Decision(scaling.clip(num_target), replace(memory, down_since_s=None))
    if memory.down_since_s is None:
        memory = replace(memory, down_since_s=now_s, down_to=down)
    memory = replace(memory, down_to=max(down, memory.down_to))
    if memory.down_since_s is not None and now_s - memory.down_since_s < scaling.down_after_s:
        return Decision(num_target, memory)
    return Decision(memory.down_to, replace(memory, down_since_s=None, settled_since_s=None))


def _needed(pressure: Pressure, memory: Memory, spare: float = 1.0) -> int:
    """Workers of which each carries `spare` of what it can."""
    by_rate = 0.0 if memory.learned is None else pressure.rate / memory.learned
    return ceil(max(pressure.work / pressure.capacity, pressure.floor, by_rate) / spare - _EPS)


def _is_late_by_load(pressure: Pressure, num: int) -> bool:
    """Whether latencies are over their bounds because there is too much to do."""
    return pressure.lateness > 1 and pressure.rate > 0 and pressure.work / num > LEAST_LOAD * pressure.capacity


def _is_overfull(pressure: Pressure, num: int, scaling: Scaling) -> bool:
    """Whether decode workers have more sequences than they should; prefill workers' time says so by itself."""
    is_over = pressure.rate > 0 and pressure.work / num > pressure.capacity
    return is_over and scaling.role == Role.DECODE.value


def _pressure(signals: Sequence[Signals], scaling: Scaling) -> Pressure:
    queue = _queue_floor(signals, scaling)
    ttft = max(it.ttft_s for it in signals) / scaling.ttft_slo_s
    if scaling.role == Role.PREFILL.value:
        busy = sum(it.busy_share for it in signals)
        return Pressure(busy, BUSY, busy, queue, ttft)
    itl = max(it.itl_s for it in signals) / scaling.itl_slo_s
    kv_bytes = fmean(it.kv_bytes for it in signals)
    used = sum(it.kv_bytes - it.free_kv_bytes for it in signals)
    floor = used / (KV_FILL * kv_bytes) if kv_bytes else 0.0
    if scaling.prefills:
        floor, itl = max(floor, queue), max(itl, ttft)
    num = sum(it.num_running + it.num_waiting for it in signals)
    rate = sum(it.num_running / it.itl_s for it in signals if it.itl_s > _EPS)
    return Pressure(num, FILL * max(1.0, fmean(it.max_running for it in signals)), rate, floor, itl)


def _queue_floor(signals: Sequence[Signals], scaling: Scaling) -> float:
    """Workers that compute what is queued in time."""
    speeds = [it.tokens_per_s for it in signals if it.tokens_per_s >= 1]
    if not speeds:
        return 0.0
    return sum(it.queued_tokens for it in signals) / (fmean(speeds) * QUEUE_SHARE * scaling.ttft_slo_s)
