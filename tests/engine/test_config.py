"""config.json as transformers 4 and 5 write it, and as nobody should."""

import json
from pathlib import Path
from typing import Any

import pytest
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemline.engine.config import Gemma2Config, LayerKind
from gemline.errors import CheckpointError

SMALL: dict[str, Any] = {
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "vocab_size": 100,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "sliding_window": 7,
    "query_pre_attn_scalar": 25,
}
LOCAL, GLOBAL = LayerKind.LOCAL, LayerKind.GLOBAL


def load(directory: Path, generation: Any = None, **values: Any) -> Gemma2Config:
    (directory / "config.json").write_text(json.dumps(SMALL | values))
    if generation is not None:
        (directory / "generation_config.json").write_text(json.dumps(generation))
    return Gemma2Config.load(directory)


def test_the_spelling_of_transformers_4_is_read(tmp_path: Path) -> None:
    config = load(tmp_path, rope_theta=5000.0, torch_dtype="bfloat16", eos_token_id=1, hidden_act="gelu_pytorch_tanh")
    assert (config.rope_theta, config.stop_token_ids, config.num_key_value_heads) == (5000.0, (1,), 2)


def test_the_spelling_of_transformers_5_is_read(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "rope_theta": 5000.0}
    config = load(tmp_path, rope_parameters=rope, dtype="bfloat16", eos_token_id=[1, 107])
    assert (config.rope_theta, config.stop_token_ids) == (5000.0, (1, 107))


def test_what_transformers_writes_is_read_back_whole(tmp_path: Path) -> None:
    theirs = transformers.Gemma2Config()
    theirs.save_pretrained(tmp_path)
    assert Gemma2Config.load(tmp_path) == Gemma2Config()


def test_absent_keys_have_the_defaults_of_the_2b_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    config = Gemma2Config.load(tmp_path)
    assert config == Gemma2Config()
    assert (config.num_local_layers, config.num_global_layers) == (13, 13)


def test_layers_alternate_and_the_first_is_local(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.layer_kinds == (LOCAL, GLOBAL, LOCAL)
    assert [config.window(layer) for layer in range(3)] == [7, None, 7]
    assert (config.num_local_layers, config.num_global_layers) == (2, 1)


def test_layer_types_are_followed(tmp_path: Path) -> None:
    config = load(tmp_path, layer_types=["full_attention", "full_attention", "sliding_attention"])
    assert [config.is_local(layer) for layer in range(3)] == [False, False, True]


def test_null_caps_mean_no_caps(tmp_path: Path) -> None:
    config = load(tmp_path, attn_logit_softcapping=None, final_logit_softcapping=None)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (None, None)
    assert (load(tmp_path).attn_logit_softcapping, load(tmp_path).final_logit_softcapping) == (50.0, 30.0)


def test_end_tokens_of_both_files_count(tmp_path: Path) -> None:
    assert load(tmp_path, {"eos_token_id": [107, 1]}, eos_token_id=9).stop_token_ids == (1, 9, 107)
    assert load(tmp_path, {"eos_token_id": 107}).stop_token_ids == (107,)


def test_the_scale_is_that_of_query_pre_attn_scalar(tmp_path: Path) -> None:
    assert load(tmp_path).attention_scale == 0.2


def test_a_model_without_local_layers_needs_no_window(tmp_path: Path) -> None:
    config = load(tmp_path, sliding_window=None, layer_types=["full_attention"] * 3)
    assert [config.window(layer) for layer in range(3)] == [None] * 3


def test_parameter_shapes_are_those_of_transformers(tmp_path: Path) -> None:
    for extra in ({}, {"attention_bias": True, "tie_word_embeddings": False}):
        theirs = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SMALL | extra))
        expected = {name: tuple(parameter.shape) for name, parameter in theirs.named_parameters()}
        assert load(tmp_path, **extra).parameter_shapes() == expected


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("hidden_size", 0, "hidden_size: must be an integer from 1 to 16777215, is 0"),
        ("hidden_size", -4, "-4"),
        ("hidden_size", "32", "'32'"),
        ("hidden_size", 32.0, "32.0"),
        ("hidden_size", True, "True"),
        ("vocab_size", 10**30, "1000000"),
        ("num_hidden_layers", 10**6, "from 1 to 4095, is 1000000"),
        ("num_key_value_heads", 3, "num_attention_heads: 4 is not a multiple of num_key_value_heads 3"),
        ("head_dim", 15, "head_dim: must be even to be rotated, is 15"),
        ("sliding_window", None, "sliding_window: is null, but 2 layers need a window"),
        ("rms_norm_eps", 0, "rms_norm_eps: must be a finite number over 0, is 0"),
        ("rms_norm_eps", 10**400, "rms_norm_eps"),
        ("attn_logit_softcapping", -50, "attn_logit_softcapping: must be a finite number over 0, is -50"),
        ("final_logit_softcapping", "thirty", "'thirty'"),
        ("tie_word_embeddings", 1, "tie_word_embeddings: must be true or false, is 1"),
        (
            "hidden_activation",
            "mish",
            "hidden_activation: must be one of gelu_pytorch_tanh, gelu, silu, relu, is 'mish'",
        ),
        ("layer_types", ["full_attention"], "layer_types: lists 1 layers but num_hidden_layers is 3"),
        ("layer_types", ["chunked_attention"] * 3, "chunked_attention"),
        ("layer_types", [["full_attention"]] * 3, "layer_types"),
        ("architectures", ["LlamaForCausalLM"], "must be [\"Gemma2ForCausalLM\"], is ['LlamaForCausalLM']"),
        ("model_type", "gemma3_text", "model_type: must be 'gemma2', is 'gemma3_text'"),
        ("rope_parameters", {"rope_type": "yarn"}, "rope_parameters.rope_type: must be 'default', is 'yarn'"),
        ("rope_parameters", {"sliding_attention": {}}, "rope_parameters.sliding_attention: is not supported"),
        ("rope_parameters", [], "rope_parameters: must be an object, is []"),
        ("rope_scaling", {"type": "linear", "factor": 2.0}, "rope_scaling.type: must be 'default', is 'linear'"),
        ("rope_theta", float("inf"), "rope_theta"),
        ("eos_token_id", -1, "eos_token_id: must be a token id or a list of them, is -1"),
        ("eos_token_id", ["1"], "['1']"),
        ("bos_token_id", 100, "bos_token_id: 100 is not under vocab_size 100"),
        ("use_bidirectional_attention", True, "use_bidirectional_attention"),
        ("quantization_config", {"bits": 4}, "quantization_config.quant_method: compressed-tensors, gptq and awq are"),
    ],
)
def test_a_wrong_value_is_refused_by_name(tmp_path: Path, key: str, value: object, said: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path, **{key: value})
    assert str(tmp_path / "config.json") in caught.value.message
    assert key in caught.value.message
    assert said in caught.value.message


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"a": 1, "a": 2}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}"],
)
def test_a_file_that_is_no_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Gemma2Config.load(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: cannot be read: No such file"):
        Gemma2Config.load(tmp_path)


def test_a_wrong_generation_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"generation_config\.json: eos_token_id"):
        load(tmp_path, {"eos_token_id": "<eos>"})


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=st.dictionaries(
        st.sampled_from([*SMALL, "rope_parameters", "layer_types", "eos_token_id", "rope_theta", "sliding_window"]),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
            max_leaves=4,
        ),
    )
)
def test_any_values_give_a_config_or_a_clear_error(tmp_path: Path, values: dict[str, Any]) -> None:
    try:
        load(tmp_path, **values)
    except CheckpointError as error:
        assert "config.json" in error.message
