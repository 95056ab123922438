"""Our model on the Triton kernels against transformers' Gemma2ForCausalLM."""

from dataclasses import replace
from itertools import islice
from typing import Any

import pytest
import torch
from support.device import DEVICE, IS_INTERPRETED
from support.published import GEMMA_2B, Model, shrunk
from support.solo import Solo
from transformers import Gemma2Config as TheirConfig
from transformers import Gemma2ForCausalLM

from gemline.engine.config import Gemma2Config
from gemline.engine.model import Gemma2Model
from gemline_kernels.gpu import backend

TINY = replace(shrunk(GEMMA_2B), width=64, inner=96, num_layers=4, window=24, vocab_size=128)
WIDE = replace(shrunk(GEMMA_2B) if IS_INTERPRETED else GEMMA_2B, num_layers=4, vocab_size=4096)
BLOCK_SIZE = 32


def sizes_of(model: Model) -> dict[str, Any]:
    """By the names that both configurations have."""
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_groups,
        "head_dim": model.head_dim,
        "query_pre_attn_scalar": model.query_scalar,
        "sliding_window": model.window,
    }


def their_model(model: Model, dtype: torch.dtype, query_gain: float) -> Any:
    """Random weights, and queries large enough for scores to come near the cap."""
    fields: dict[str, Any] = sizes_of(model) | {
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "attn_implementation": "eager",
    }
    random = torch.Generator().manual_seed(0)
    theirs: Any = Gemma2ForCausalLM(TheirConfig(**fields)).requires_grad_(False)
    for name, parameter in theirs.named_parameters():
        spread = 0.2 if "norm" in name else parameter.shape[1] ** -0.5 * (query_gain if "q_proj" in name else 1.0)
        parameter.copy_(torch.randn(parameter.shape, generator=random) * spread)
    return theirs.to(DEVICE, dtype)


def our_model(model: Model, theirs: Any, dtype: torch.dtype) -> Gemma2Model:
    return Gemma2Model(Gemma2Config(**sizes_of(model)), theirs.state_dict(), dtype, backend)


def prompt(model: Model, num_tokens: int) -> list[int]:
    random = torch.Generator().manual_seed(1)
    return torch.randint(0, model.vocab_size, (num_tokens,), generator=random).tolist()


def in_chunks(model: Gemma2Model, token_ids: list[int], sizes: list[int]) -> torch.Tensor:
    """logits_TV, the prompt fed in chunks of those sizes."""
    solo, rest = Solo(model, len(token_ids), BLOCK_SIZE), iter(token_ids)
    return torch.cat([solo.forward(list(islice(rest, size))) for size in sizes])


@torch.inference_mode()
def their_logits(theirs: Any, token_ids: list[int]) -> torch.Tensor:
    logits_TV: torch.Tensor = theirs(torch.tensor([token_ids], device=DEVICE)).logits[0]
    return logits_TV.float()


@pytest.mark.parametrize("sizes", [[61], [1] * 61, [30, 1, 1, 24, 5]], ids=["whole", "token by token", "chunks"])
def test_logits_in_float32_are_theirs(sizes: list[int]) -> None:
    theirs = their_model(TINY, torch.float32, query_gain=4.0)
    token_ids = prompt(TINY, 61)
    expected = their_logits(theirs, token_ids)
    actual = in_chunks(our_model(TINY, theirs, torch.float32), token_ids, sizes)
    assert float((actual - expected).abs().max()) < 1e-3


def test_logits_in_bfloat16_are_as_near_to_float32_as_theirs() -> None:
    """Beyond the window, a prompt in two chunks and then token by token, at the 2B model's widths."""
    num_tokens = WIDE.window + WIDE.window // 8
    sizes = [WIDE.window // 2, num_tokens - WIDE.window // 2 - 4, 1, 1, 1, 1]
    theirs = their_model(WIDE, torch.float32, query_gain=4.0)
    token_ids = prompt(WIDE, num_tokens)
    exact = their_logits(theirs, token_ids)
    theirs = theirs.to(torch.bfloat16)
    their_error = (their_logits(theirs, token_ids) - exact).norm() / exact.norm()
    our_error = (in_chunks(our_model(WIDE, theirs, torch.bfloat16), token_ids, sizes) - exact).norm() / exact.norm()
    assert float(our_error) < 1.25 * float(their_error) + 1e-3
