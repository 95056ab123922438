"""From a checkpoint to a model: what is decided, what is told, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.uncapped_worker import uncapped

from gemline.engine import model
from gemline.engine.engine import Engine
from gemline.engine.loading import choose_dtype, load_model
from gemline.engine.options import EngineOptions, Quantization
from gemline.errors import CheckpointError, ConfigurationError

OPTIONS = EngineOptions(num_kv_blocks=32, max_running=4)
BFLOAT16, FLOAT32, FLOAT16 = torch.bfloat16, torch.float32, torch.float16


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_a_dtype_that_is_asked_for_is_taken(asked: str) -> None:
    for stored in (BFLOAT16, FLOAT32):
        assert choose_dtype(asked, frozenset({stored}), "native") == asked


@pytest.mark.parametrize(
    ("stored", "expected"),
    [({BFLOAT16}, "bfloat16"), ({FLOAT32}, "float32"), ({FLOAT16}, "float32"), ({BFLOAT16, FLOAT32}, "float32")],
)
def test_auto_rounds_nothing_that_was_stored_finer_than_bfloat16(stored: set[torch.dtype], expected: str) -> None:
    assert choose_dtype("auto", frozenset(stored), "native") == expected


@pytest.mark.parametrize(("flags", "expected"), [({"avx2"}, "float32"), ({"avx512f", "amx_bf16"}, "bfloat16")])
def test_auto_asks_whether_the_cpu_is_fast_in_bfloat16(
    monkeypatch: pytest.MonkeyPatch, flags: set[str], expected: str
) -> None:
    monkeypatch.setattr("gemline.engine.loading.cpu_flags", lambda: frozenset(flags))
    assert choose_dtype("auto", frozenset({BFLOAT16}), "onednn") == expected


def test_the_options_of_a_loaded_engine_leave_nothing_to_choose(tiny_checkpoint: Path) -> None:
    engine = Engine.load(tiny_checkpoint, replace(OPTIONS, dtype="auto"))
    assert engine.options.dtype in ("float32", "bfloat16")
    assert engine.report is not None
    assert engine.report.dtype == engine.options.dtype


def test_quantized_weights_take_less_memory_and_say_so(tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    precisions: tuple[Quantization, ...] = ("none", "int8", "int4")
    none, int8, int4 = (load_model(tiny_checkpoint, replace(OPTIONS, quantization=it)).report for it in precisions)
    assert none.num_weight_bytes > int8.num_weight_bytes >= int4.num_weight_bytes
    # Without the native library int4 weights are kept as int8.
    assert (int8.num_weight_bytes > int4.num_weight_bytes) == (none.backend == "native")
    lines = [record.getMessage() for record in caplog.records if "packed in" in record.getMessage()]
    assert all(f"backend {none.backend}, float32" in line and "MiB" in line for line in lines)
    assert "int4 weights" in lines[2]


def test_loading_tells_how_far_it_is(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    load_model(tiny_checkpoint, OPTIONS)
    assert not [line for line in caplog.messages if "layers are loaded" in line]  # it takes no time
    monkeypatch.setattr(model, "_TELL_EVERY_S", 0.0)
    number = load_model(tiny_checkpoint, OPTIONS).model.config.num_hidden_layers
    told = [line for line in caplog.messages if "layers are loaded" in line]
    assert told == [f"{layer} of {number} layers are loaded" for layer in range(1, number + 1)]


def test_fp8_takes_a_byte_a_weight_and_says_that_a_cpu_is_slow_in_it(
    tiny_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    precisions: tuple[Quantization, ...] = ("none", "fp8")
    none, fp8 = (load_model(tiny_checkpoint, replace(OPTIONS, quantization=it)).report for it in precisions)
    assert fp8.num_weight_bytes < none.num_weight_bytes / 2
    assert [
        "fp8 weights are slow on a CPU" in it.getMessage() for it in caplog.records if it.levelname == "WARNING"
    ] == [True]


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_a_tensor_that_cannot_be_quantized_is_named(
    tiny_checkpoint: Path, tmp_path: Path, quantization: Quantization
) -> None:
    weights = load_file(tiny_checkpoint / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    weights["model.layers.1.mlp.up_proj.weight"][4, 0] = torch.inf
    (tmp_path / "config.json").write_bytes((tiny_checkpoint / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as caught:
        Engine.load(tmp_path, replace(OPTIONS, quantization=quantization))
    assert caught.value.message == (
        "model.layers.1.mlp.up_proj.weight: 2 values are not finite (NaN or Inf), so it cannot be quantized"
        f" to {quantization}"
    )


def test_a_backend_that_computes_wrong_is_refused_by_name_and_operation(tiny_checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the uncapped backend computes wrong on this machine: .*attention"):
        load_model(tiny_checkpoint, OPTIONS, uncapped())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("quantization", ["none", "int8", "int4", "fp8"])
def test_every_precision_computes(tiny_checkpoint: Path, dtype: str, quantization: Quantization) -> None:
    engine = Engine.load(tiny_checkpoint, replace(OPTIONS, dtype=dtype, quantization=quantization))
    assert (engine.options.dtype, engine.options.quantization) == (dtype, quantization)
