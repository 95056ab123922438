"""`gemline plan` against the published figures, the checkpoint's own shapes, and what engines pack."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from gemline.cli.main import app
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.footprint import CacheForm, Footprint, WeightForm
from gemline.engine.model import Gemma2Model
from gemline.engine.options import Quantization
from gemline.engine.part import check_degree
from gemline.errors import ConfigurationError
from gemline.sizing.capacity import capacity
from gemline.sizing.floors import decode_floor, prefill_floor
from gemline.sizing.gpus import GPUS
from gemline.sizing.models import PUBLISHED, find_model
from gemline_kernels.choose import choose

GIB, MIB, KIB = 2**30, 2**20, 2**10
H100 = GPUS["h100"]


@pytest.mark.parametrize(
    ("name", "parameters", "bf16_gb", "token_kib", "kept_mib", "cut_mib", "most_ranks"),
    [
        ("2b", 2.614e9, 5.2, 104, 832, 624, 4),
        ("9b", 9.241e9, 18.5, 336, 2688, 2016, 8),
        ("27b", 27.226e9, 54.5, 368, 2944, 2208, 16),
    ],
)
def test_the_published_models_are_as_large_as_they_are_known_to_be(
    name: str, parameters: float, bf16_gb: float, token_kib: int, kept_mib: int, cut_mib: int, most_ranks: int
) -> None:
    shard = Footprint(PUBLISHED[name])
    assert sum(map(math.prod, shard.config.parameter_shapes().values())) == pytest.approx(parameters, rel=2e-4)
    assert shard.weight_bytes / 1e9 == pytest.approx(bf16_gb, abs=0.05)
    assert shard.sequence_bytes(1) == token_kib * KIB
    assert 8192 * shard.sequence_bytes(1) == kept_mib * MIB
    assert shard.sequence_bytes(8192) == cut_mib * MIB
    assert Footprint(shard.config, num_ranks=most_ranks).own.num_key_value_heads == 1


@pytest.mark.parametrize(
    ("name", "weights", "cache", "context", "streams", "tokens_per_s"),
    [
        # Of two matrices with the same bytes each; a sheet of this arithmetic made apart from ours.
        ("2b", "bf16", "bf16", 1024, 1, 628),
        ("2b", "bf16", "bf16", 8192, 32, 4097),
        ("9b", "bf16", "bf16", 4096, 8, 901),
        ("27b", "bf16", "bf16", 1024, 8, 466),
        ("27b", "bf16", "bf16", 8192, 256, 1325),
        ("9b", "fp8", "fp8", 4096, 64, 3946),
        ("2b", "fp8", "fp8", 8192, 128, 9638),
    ],
)
def test_floors_are_those_of_the_data_sheet(
    name: str, weights: WeightForm, cache: CacheForm, context: int, streams: int, tokens_per_s: float
) -> None:
    shard = Footprint(PUBLISHED[name], weights, cache)
    floor = decode_floor(shard, H100, streams, context)
    assert streams / floor.step_s == pytest.approx(tokens_per_s, rel=0.003)
    assert floor.links_s == 0


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("config", PUBLISHED.values(), ids=PUBLISHED)
def test_the_shards_together_are_the_model_and_what_is_copied(config: Gemma2Config, num_ranks: int) -> None:
    if config.num_attention_heads % num_ranks:
        with pytest.raises(
            ConfigurationError, match=rf"tensor_parallel {num_ranks} does not divide num_attention_heads"
        ):
            check_degree(config, num_ranks)
        return
    whole, part = Footprint(config), Footprint(config, num_ranks=num_ranks)
    num_copies = max(1, num_ranks // config.num_key_value_heads)
    of_keys = 2 * config.num_key_value_heads * config.head_dim * config.hidden_size * config.num_hidden_layers
    assert num_ranks * part.linear_size == whole.linear_size + (num_copies - 1) * of_keys
    assert num_ranks * part.embedding_bytes == whole.embedding_bytes
    assert num_ranks * part.sequence_bytes(9000) == num_copies * whole.sequence_bytes(9000)
    assert decode_floor(part, H100, 8, 100).linear_s < decode_floor(whole, H100, 8, 100).linear_s or num_ranks == 1
    assert (decode_floor(part, H100, 8, 100).links_s > 0) == (num_ranks > 1)


@pytest.mark.parametrize(
    ("heads", "groups", "inner", "num_ranks", "message"),
    [
        (8, 4, 96, 3, "tensor_parallel 3 does not divide num_attention_heads 8"),
        (12, 4, 96, 6, "tensor_parallel 6 neither divides num_key_value_heads 4 nor is a multiple of it"),
        (8, 4, 90, 4, "tensor_parallel 4 does not divide intermediate_size 90"),
        (8, 4, 96, 0, "tensor_parallel must be at least 1, is 0"),
    ],
)
def test_a_degree_that_does_not_divide_is_refused_with_both_numbers(
    heads: int, groups: int, inner: int, num_ranks: int, message: str
) -> None:
    config = Gemma2Config(num_attention_heads=heads, num_key_value_heads=groups, intermediate_size=inner)
    with pytest.raises(ConfigurationError, match=message):
        check_degree(config, num_ranks)


@pytest.mark.parametrize(
    ("quantization", "form"), [("none", "bf16"), ("int8", "int8"), ("int4", "int4"), ("fp8", "fp8")]
)
def test_an_engine_packs_what_is_planned(quantization: Quantization, form: WeightForm) -> None:
    config = Gemma2Config(
        vocab_size=2048,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
    )
    weights = {name: torch.randn(shape).bfloat16() for name, shape in config.parameter_shapes().items()}
    model = Gemma2Model(config, weights, torch.bfloat16, choose(), quantization)
    shard = Footprint(config, form)
    assert model.weights.num_bytes == pytest.approx(shard.weight_bytes - shard.norm_bytes, rel=0.02)


def test_a_prompt_takes_at_least_its_products() -> None:
    shard = Footprint(PUBLISHED["27b"])
    assert prefill_floor(shard, H100, 8192).step_s > 2 * 26e9 * 8192 / H100.flops
    assert prefill_floor(shard, H100, 1).step_s > shard.linear_bytes / H100.bytes_per_s


def plan(*words: str) -> Any:
    return CliRunner().invoke(app(), ["plan", *words])


def test_the_command_tells_what_fits_and_how_fast_it_can_be() -> None:
    result = plan("--model", "google/gemma-2-27b-it", "--gpu", "h100", "--tp", "2", "--json")
    told = json.loads(result.output)
    shard = Footprint(PUBLISHED["27b"], num_ranks=2)
    assert result.exit_code == 0 and told["fits"]
    assert told["num_sequences"] == capacity(shard, H100).num_sequences(shard, 8192)
    assert told["kv_bytes_per_token"] == shard.token_bytes(LayerKind.GLOBAL) + shard.token_bytes(LayerKind.LOCAL)
    text = plan("--model", "27b", "--tp", "2").output
    assert f"{told['num_sequences']} sequences of 8192" in text
    assert "does not fit" in text  # 256 streams


def test_what_does_not_fit_is_an_exit_code_and_what_would_is_told() -> None:
    result = plan("--model", "27b", "--gpu", "l4")
    assert result.exit_code == 1
    assert "does not fit: one sequence of 8192 tokens lacks" in result.output
    assert "1 x l4, int4 weights" in result.output
    assert "1 x h100, bf16 weights" in result.output
    assert plan("--model", "27b", "--gpu", "l4", "--weights", "int4").exit_code == 0
    assert not json.loads(plan("--model", "27b", "--gpu", "l4", "--json").output)["fits"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "7b"), "model '7b' is no folder and no published size: 2b, 9b, 27b"),
        (("--model", "9b", "--gpu", "h900"), "gpu 'h900' is not known"),
        (("--model", "9b", "--tp", "3"), "tensor_parallel 3 does not divide num_attention_heads 16"),
        (("--model", "9b", "--weights", "fp4"), "weights must be one of bf16, fp8, int8, int4, is 'fp4'"),
        (("--model", "9b", "--kv", "int8"), "kv must be one of bf16, fp8, is 'int8'"),
    ],
)
def test_what_cannot_be_planned_is_told_by_name(words: tuple[str, ...], message: str) -> None:
    result = plan(*words)
    assert isinstance(result.exception, ConfigurationError)
    assert message in str(result.exception)


def test_a_folder_is_a_model_too(tiny_checkpoint: Path) -> None:
    assert find_model(str(tiny_checkpoint)) == Gemma2Config.load(tiny_checkpoint)
