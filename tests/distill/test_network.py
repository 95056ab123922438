"""The network that is trained, against transformers' Gemma2ForCausalLM and our engine: the same logits."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.solo import Solo
from transformers import Gemma2Config as TheirConfig
from transformers import Gemma2ForCausalLM

from gemline.distill.network import Network, fresh_weights
from gemline.engine.config import Gemma2Config
from gemline.engine.model import Gemma2Model

TOLERANCE = 1e-4
BASE: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "sliding_window": 8,
    "query_pre_attn_scalar": 6,
    "max_position_embeddings": 600,
    "attn_implementation": "eager",
}
TRAPS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "multi-query": {"num_key_value_heads": 1},
    "odd window": {"sliding_window": 5},
    "scale is not that of the head width": {"query_pre_attn_scalar": 17},
    "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "untied head and biases": {"tie_word_embeddings": False, "attention_bias": True},
    "another activation": {"hidden_activation": "silu"},
}


def make_pair(directory: Path, values: dict[str, Any]) -> tuple[Any, Network]:
    """Theirs and ours with the same random weights, wide enough that scores come near the cap."""
    config = TheirConfig(**(BASE | values))
    theirs = Gemma2ForCausalLM(config).requires_grad_(False)
    random = torch.Generator().manual_seed(0)
    for name, parameter in theirs.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random) * (0.2 if "norm" in name else 0.4))
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return theirs, Network(Gemma2Config.load(directory), theirs.state_dict())


def some_ids(num_rows: int, num_tokens: int) -> torch.Tensor:
    return torch.randint(0, BASE["vocab_size"], (num_rows, num_tokens), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("trap", TRAPS)
@torch.no_grad()
def test_its_logits_are_those_of_transformers(tmp_path: Path, trap: str) -> None:
    theirs, ours = make_pair(tmp_path, TRAPS[trap])
    ids_BT = some_ids(2, 23)
    assert (ours.logits(ours.hidden(ids_BT)) - theirs(ids_BT).logits).abs().max() < TOLERANCE


@torch.no_grad()
def test_blocks_of_queries_change_nothing(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, {"sliding_window": 100})
    ids_BT = some_ids(1, 540)  # three blocks, the last of them short
    assert (ours.logits(ours.hidden(ids_BT)) - theirs(ids_BT).logits).abs().max() < TOLERANCE


@torch.no_grad()
def test_its_logits_are_those_of_the_engine(tmp_path: Path) -> None:
    _, ours = make_pair(tmp_path, {"sliding_window": 16})
    engine = Gemma2Model(ours.config, ours.weights, torch.float32)
    ids_BT = some_ids(1, 40)
    expected = Solo(engine, 40).forward(ids_BT[0].tolist())
    assert (ours.logits(ours.hidden(ids_BT)[0, -len(expected) :]) - expected).abs().max() < TOLERANCE


def test_what_stands_behind_a_token_does_not_change_it(tmp_path: Path) -> None:
    _, ours = make_pair(tmp_path, {})
    ids_BT = some_ids(1, 30)
    changed_BT = ids_BT.clone()
    changed_BT[:, 20:] = 0
    assert torch.equal(ours.hidden(ids_BT)[:, :20], ours.hidden(changed_BT)[:, :20])


def test_every_weight_gets_a_gradient() -> None:
    config = Gemma2Config(**{key: value for key, value in BASE.items() if key in Gemma2Config.__dataclass_fields__})
    network = Network(config, fresh_weights(config, 0))
    torch.autograd.backward(network.logits(network.hidden(some_ids(2, 12))).square().sum())
    without = [
        name for name, tensor in network.weights.items() if tensor.grad is None or not tensor.grad.abs().sum() > 0
    ]
    assert without == []


def test_fresh_weights_of_one_seed_are_the_same() -> None:
    config = Gemma2Config(**{key: value for key, value in BASE.items() if key in Gemma2Config.__dataclass_fields__})
    first, again, other = (fresh_weights(config, seed) for seed in (0, 0, 1))
    assert first.keys() == config.parameter_shapes().keys()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
