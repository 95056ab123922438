"""What /metrics says of an engine."""

from support.workers import measure, measuring

from gemline.engine.engine import EngineOptions, EngineRequest
from gemline.engine.events import StepResult
from gemline.engine.loading import LoadReport
from gemline.engine.params import SamplingParams
from gemline.engine.toy import toy_engine
from gemline.engine_metrics import EngineMetrics


def test_steps_tokens_and_preemptions_are_counted() -> None:
    telemetry = measuring()
    metrics = EngineMetrics(telemetry, toy_engine(), lambda: (2, 3))
    for num_tokens in (5, 7):
        metrics.record(StepResult(num_batch_tokens=num_tokens, num_preempted=1, duration_s=0.25))
    assert measure(telemetry, "gemline_engine_steps_total") == 2
    assert measure(telemetry, "gemline_engine_batch_tokens_total") == 12
    assert measure(telemetry, "gemline_engine_preemptions_total") == 2
    assert measure(telemetry, "gemline_engine_step_seconds_sum") == 0.5
    assert measure(telemetry, "gemline_requests", state="waiting") == 3


def test_the_prefix_cache_tells_what_it_found_kept_and_gave_up() -> None:
    telemetry = measuring()
    engine = toy_engine(EngineOptions(num_kv_blocks=16, block_size=4, max_batch_tokens=64))
    EngineMetrics(telemetry, engine, lambda: (0, 0))
    for seq_id, length in enumerate((41, 45, 41)):
        params = SamplingParams(max_tokens=1, temperature=0.0)
        engine.add(EngineRequest(seq_id, tuple(range(length)), length, params, cache_salt=b"tenant"))
        engine.step()
    engine.add(EngineRequest(9, tuple(range(50, 90)), 40, params))  # of 16 blocks it needs 10
    engine.step()
    assert measure(telemetry, "gemline_prefix_cache_queried_tokens_total") == 127
    assert measure(telemetry, "gemline_prefix_cache_hit_tokens_total") == 80
    assert measure(telemetry, "gemline_prefix_cache_hit_ratio") == 80 / 127
    for kind in ("global", "local"):
        assert measure(telemetry, "gemline_prefix_cache_evicted_blocks_total", kind=kind) == 5
        assert measure(telemetry, "gemline_kv_evictable_blocks", kind=kind) == 6


def test_what_was_loaded_is_told_with_backend_and_precision() -> None:
    telemetry, engine = measuring(), toy_engine()
    engine.report = LoadReport("native", "bfloat16", "int4", "float8_e4m3", 1000, 1.5)
    EngineMetrics(telemetry, engine, lambda: (0, 0))
    labels = {"backend": "native", "dtype": "bfloat16", "quantization": "int4", "kv_dtype": "float8_e4m3"}
    assert measure(telemetry, "gemline_weights_bytes", **labels) == 1000
    assert measure(telemetry, "gemline_load_seconds") == 1.5
