"""What an engine's steps look like from outside: counters, a histogram, gauges. Knows no worker."""

from collections.abc import Callable, Iterable

from opentelemetry.metrics import CallbackOptions, Observation

from gemline.engine.blocks import BlockCounts
from gemline.engine.engine import Engine
from gemline.engine.events import StepResult
from gemline.engine.loading import LoadReport
from gemline.telemetry import Telemetry


class EngineMetrics:
    """`load` gives the worker's requests (running, waiting).

    Counters are plain numbers that are asked for when somebody reads the metrics: to add to OpenTelemetry's own costs
    8 us each, with every step.
    """

    def __init__(self, telemetry: Telemetry, engine: Engine, load: Callable[[], tuple[int, int]]) -> None:
        self._engine = engine
        self._load = load
        self._num_steps = 0
        self._num_tokens = 0
        self._num_preemptions = 0
        meter = telemetry.meter
        for name, count, description in (
            ("gemline_engine_steps", lambda: self._num_steps, "Engine steps"),
            ("gemline_engine_batch_tokens", lambda: self._num_tokens, "Tokens computed by the steps"),
            ("gemline_engine_preemptions", lambda: self._num_preemptions, "Sequences sent back"),
        ):
            meter.create_observable_counter(name, [_observing(count)], description=description)
        self._duration = telemetry.latency("gemline_engine_step", "Duration of a step")
        meter.create_observable_gauge("gemline_requests", [self._observe_load], description="Requests, by state")
        meter.create_observable_gauge(
            "gemline_kv_free_blocks", [self._observe_blocks], description="Free KV blocks, by kind of layer"
        )
        self._tell_prefix_cache(telemetry)
        if engine.report is not None:
            _tell_load(telemetry, engine.report)

    def record(self, result: StepResult) -> None:
        """One step."""
        self._num_steps += 1
        self._num_tokens += result.num_batch_tokens
        self._num_preemptions += result.num_preempted
        self._duration.record(result.duration_s)

    def _observe_load(self, _options: CallbackOptions) -> Iterable[Observation]:
        num_running, num_waiting = self._load()
        yield Observation(num_running, {"state": "running"})
        yield Observation(num_waiting, {"state": "waiting"})

    def _tell_prefix_cache(self, telemetry: Telemetry) -> None:
        """Counts that the engine keeps: any thread may read them."""
        meter, engine = telemetry.meter, self._engine
        for name, count, description in (
            ("queried", lambda: engine.cache_use.num_queried_tokens, "Tokens of the prompts that were begun"),
            ("hit", lambda: engine.cache_use.num_hit_tokens, "Those of them that were found in the prefix cache"),
        ):
            meter.create_observable_counter(
                f"gemline_prefix_cache_{name}_tokens", [_observing(count)], description=description
            )
        meter.create_observable_gauge(
            "gemline_prefix_cache_hit_ratio",
            [_observing(lambda: engine.cache_use.hit_ratio)],
            description="Tokens found in the prefix cache over tokens of the prompts that were begun, since the start",
        )
        meter.create_observable_counter(
            "gemline_prefix_cache_evicted_blocks",
            [lambda _options: _by_kind(engine.cache_use.num_evicted)],
            description="Blocks that the prefix cache gave up, by kind of layer",
        )
        meter.create_observable_gauge(
            "gemline_kv_evictable_blocks",
            [lambda _options: _by_kind(engine.num_evictable_blocks)],
            description="Free KV blocks that the prefix cache keeps until they are needed, by kind of layer",
        )

    def _observe_blocks(self, _options: CallbackOptions) -> Iterable[Observation]:
        return _by_kind(self._engine.num_free_blocks)  # two lengths: any thread may read them


def _by_kind(blocks: BlockCounts) -> list[Observation]:
    return [
        Observation(blocks.num_global, {"kind": "global"}),
        Observation(blocks.num_local, {"kind": "local"}),
    ]


def _tell_load(telemetry: Telemetry, report: LoadReport) -> None:
    attributes = {
        "backend": report.backend,
        "dtype": report.dtype,
        "quantization": report.quantization,
        "kv_dtype": report.kv_dtype,
    }
    telemetry.meter.create_observable_gauge(
        "gemline_weights",
        [_observing(lambda: report.num_weight_bytes, attributes)],
        unit="By",
        description="Memory of the packed weights",
    )
    telemetry.meter.create_observable_gauge(
        "gemline_load", [_observing(lambda: report.duration_s)], unit="s", description="Time it took to load the model"
    )


def _observing(
    value: Callable[[], float], attributes: dict[str, str] | None = None
) -> Callable[[CallbackOptions], Iterable[Observation]]:
    return lambda _options: [Observation(value(), attributes)]
