"""What an engine's steps look like from outside: counters, a histogram, gauges. Knows no worker."""

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from gemline.engine.engine import Engine
from gemline.engine.events import StepResult
from gemline.telemetry import Telemetry


class EngineMetrics:
    """`load` gives the worker's requests (running, waiting)."""

    def __init__(self, telemetry: Telemetry, engine: Engine, load: Callable[[], tuple[int, int]]) -> None:
        self._engine = engine
        self._load = load
        meter = telemetry.meter
        self._steps = meter.create_counter("gemline_engine_steps", description="Engine steps")
        self._tokens = meter.create_counter("gemline_engine_batch_tokens", description="Tokens computed by the steps")
        self._preemptions = meter.create_counter("gemline_engine_preemptions", description="Sequences sent back")
        self._duration = telemetry.latency("gemline_engine_step", "Duration of a step")
        meter.create_observable_gauge("gemline_requests", [self._observe_load], description="Requests, by state")
        meter.create_observable_gauge(
            "gemline_kv_free_blocks", [self._observe_blocks], description="Free KV blocks, by kind of layer"
        )

    def record(self, result: StepResult) -> None:
        """One step."""
        self._steps.add(1)
        self._tokens.add(result.num_batch_tokens)
        self._duration.record(result.duration_s)
        if result.num_preempted:
            self._preemptions.add(result.num_preempted)

    def _observe_load(self, _options: CallbackOptions) -> Iterable[Observation]:
        num_running, num_waiting = self._load()
        yield Observation(num_running, {"state": "running"})
        yield Observation(num_waiting, {"state": "waiting"})

    def _observe_blocks(self, _options: CallbackOptions) -> Iterable[Observation]:
        free = self._engine.num_free_blocks  # two lengths: any thread may read them
        yield Observation(free.num_global, {"kind": "global"})
        yield Observation(free.num_local, {"kind": "local"})
