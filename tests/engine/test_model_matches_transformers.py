"""Our logits against transformers' Gemma2ForCausalLM: float32, at most 1e-4 apart, however a prompt is cut."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.noise_model.checkpoint import TINY, make_checkpoint
from support.solo import Solo
from transformers import AutoModelForCausalLM, Gemma2ForCausalLM
from transformers import Gemma2Config as TheirConfig

from gemline.engine.batch import Batch
from gemline.engine.config import Gemma2Config
from gemline.engine.kv_cache import KvCache
from gemline.engine.model import Gemma2Model
from gemline.engine.weights import load_weights

TOLERANCE = 1e-4
PROMPT_LEN = 23
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
    "max_position_embeddings": 64,
}
TRAPS: dict[str, dict[str, Any]] = {
    "grouped queries": {},
    "multi-query": {"num_key_value_heads": 1},
    "one key head for each query head": {"num_key_value_heads": 4},
    "odd window": {"sliding_window": 5},
    "window of one": {"sliding_window": 1},
    "window over the prompt": {"sliding_window": 40},
    "head width is not D / H": {"head_dim": 10},
    "scale is not that of the head width": {"query_pre_attn_scalar": 17},
    "no caps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "untied head and biases": {"tie_word_embeddings": False, "attention_bias": True},
    "all layers global": {"layer_types": ["full_attention"] * 4},
    "all layers local": {"layer_types": ["sliding_attention"] * 4},
    "an odd number of layers": {"num_hidden_layers": 3},
    "another activation and base": {"hidden_activation": "gelu", "rope_parameters": {"rope_theta": 500.0}},
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared out, most of all while other processes run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def make_pair(directory: Path, values: dict[str, Any], seed: int = 0) -> tuple[Any, Gemma2Model]:
    """Both models with the same random weights, wide enough that scores come near the cap."""
    rope = {"rope_type": "default", "rope_theta": 10000.0} | values.get("rope_parameters", {})
    fields = BASE | values | {"rope_parameters": rope, "attn_implementation": "eager"}
    config = TheirConfig(**fields)
    theirs = Gemma2ForCausalLM(config).requires_grad_(False)
    random = torch.Generator().manual_seed(seed)
    for name, parameter in theirs.named_parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=random) * (0.2 if "norm" in name else 0.4))
    (directory / "config.json").write_text(json.dumps(config.to_dict()))
    return theirs, Gemma2Model(Gemma2Config.load(directory), theirs.state_dict(), torch.float32)


def prompt(num_tokens: int = PROMPT_LEN, seed: int = 0) -> list[int]:
    random = torch.Generator().manual_seed(seed)
    return torch.randint(0, BASE["vocab_size"], (num_tokens,), generator=random).tolist()


def in_chunks(model: Gemma2Model, token_ids: Sequence[int], sizes: Sequence[int], block_size: int = 4) -> torch.Tensor:
    """logits_TV of the whole prompt, fed in chunks of those sizes, the last of them again and again."""
    solo, rows, start = Solo(model, len(token_ids), block_size), [], 0
    for size in [*sizes, *[sizes[-1]] * len(token_ids)]:
        if start < len(token_ids):
            rows.append(solo.forward(token_ids[start : start + size]))
        start += size
    return torch.cat(rows)


def distance(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).abs().max())


@pytest.mark.parametrize("trap", TRAPS)
def test_chunks_of_every_size_give_their_logits(trap: str, tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, TRAPS[trap])
    expected = theirs(torch.tensor([prompt()])).logits[0]
    for size in range(1, PROMPT_LEN + 1):
        assert distance(in_chunks(ours, prompt(), [size]), expected) <= TOLERANCE, f"chunks of {size}"


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    num_kv_heads, group, num_layers = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kinds = st.sampled_from(["sliding_attention", "full_attention"])
    return {
        "num_hidden_layers": num_layers,
        "layer_types": draw(st.lists(kinds, min_size=num_layers, max_size=num_layers)),
        "hidden_size": num_kv_heads * group * draw(st.integers(2, 6)),
        "num_attention_heads": num_kv_heads * group,
        "num_key_value_heads": num_kv_heads,
        "head_dim": 2 * draw(st.integers(1, 8)),
        "query_pre_attn_scalar": draw(st.integers(2, 40)),
        "sliding_window": draw(st.integers(1, 24)),
        "attn_logit_softcapping": draw(st.none() | st.floats(5.0, 50.0)),
        "final_logit_softcapping": draw(st.none() | st.floats(5.0, 30.0)),
        "tie_word_embeddings": draw(st.booleans()),
        "attention_bias": draw(st.booleans()),
    }


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=shapes(),
    num_tokens=st.integers(1, 30),
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    block_size=st.sampled_from([1, 3, 4, 16]),
    seed=st.integers(0, 100),
)
def test_any_config_in_any_chunking_gives_their_logits(
    tmp_path: Path, values: dict[str, Any], num_tokens: int, sizes: list[int], block_size: int, seed: int
) -> None:
    theirs, ours = make_pair(tmp_path, values, seed)
    token_ids = prompt(num_tokens, seed)
    expected = theirs(torch.tensor([token_ids])).logits[0]
    assert distance(in_chunks(ours, token_ids, [num_tokens]), expected) <= TOLERANCE
    assert distance(in_chunks(ours, token_ids, sizes, block_size), expected) <= TOLERANCE


def test_sequences_of_one_ragged_batch_each_get_their_own_logits(tmp_path: Path) -> None:
    """Two whole prompts and one chunk, in blocks that are interleaved, with the released blocks' entries at 0."""
    theirs, ours = make_pair(tmp_path, {})
    prompts = [prompt(9, seed=1), prompt(17, seed=2), prompt(23, seed=3)]
    cache, size = KvCache(ours.config, 40, 40, 4, torch.float32), 4
    tables_BP = torch.arange(36).view(12, 3).T[:, :8].contiguous() + 2

    def run(starts: list[int], stops: list[int]) -> list[torch.Tensor]:
        spans = [range(start, stop) for start, stop in zip(starts, stops, strict=True)]
        query_start = [sum(len(span) for span in spans[:index]) for index in range(len(spans) + 1)]
        slots = [int(tables_BP[index, p // size]) * size + p % size for index, span in enumerate(spans) for p in span]
        local_BP = tables_BP.clone()
        for index, start in enumerate(starts):
            local_BP[index, : max(0, start - ours.config.sliding_window + 1) // size] = 0
        batch = Batch(
            token_ids_T=torch.tensor([prompts[index][p] for index, span in enumerate(spans) for p in span]),
            positions_T=torch.tensor([p for span in spans for p in span]),
            global_slots_T=torch.tensor(slots),
            local_slots_T=torch.tensor(slots),
            global_table_BP=tables_BP,
            local_table_BP=local_BP,
            query_start=torch.tensor(query_start),
            context_len=torch.tensor(stops),
            sample_rows=torch.arange(query_start[-1]),
        )
        return list(torch.tensor_split(ours.forward(batch, cache), query_start[1:-1]))

    first, then = run([0, 0, 0], [5, 16, 20]), run([5, 16, 20], [9, 17, 23])
    for token_ids, *rows in zip(prompts, first, then, strict=True):
        expected = theirs(torch.tensor([token_ids])).logits[0]
        assert distance(torch.cat(rows), expected) <= TOLERANCE


def test_only_the_rows_asked_for_are_given(tmp_path: Path) -> None:
    _, ours = make_pair(tmp_path, {})
    whole = in_chunks(ours, prompt(6), [6])
    cache, table_BP, rows_T = KvCache(ours.config, 2, 2, 4, torch.float32), torch.tensor([[0, 1]]), torch.arange(6)
    for wanted in ([5], [3, 0], []):
        sample_rows = torch.tensor(wanted, dtype=torch.int64)
        tokens_T, start, stop = torch.tensor(prompt(6)), torch.tensor([0, 6]), torch.tensor([6])
        batch = Batch(tokens_T, rows_T, rows_T, rows_T, table_BP, table_BP, start, stop, sample_rows)
        logits_BV = ours.forward(batch, cache)
        assert logits_BV.shape == (len(wanted), ours.config.vocab_size)
        assert logits_BV.equal(whole[wanted]) or distance(logits_BV, whole[wanted]) <= TOLERANCE


def test_bfloat16_stays_near_float32(tmp_path: Path) -> None:
    theirs, ours = make_pair(tmp_path, {"num_hidden_layers": 2})
    rounded = Gemma2Model(ours.config, theirs.state_dict(), torch.bfloat16)
    exact, actual = in_chunks(ours, prompt(), [PROMPT_LEN]), in_chunks(rounded, prompt(), [5])
    assert actual.dtype == torch.float32
    assert (actual - exact).norm() / exact.norm() < 0.1


def test_in_bfloat16_embeddings_are_scaled_as_theirs_are_to_the_bit(tmp_path: Path) -> None:
    """With norms that multiply by 0 no layer adds anything; sqrt(24) is 4.899, in bfloat16 4.90625."""
    theirs, ours = make_pair(tmp_path, {"final_logit_softcapping": None})
    silent = {name: torch.full_like(w, -1.0) if "post_" in name else w for name, w in theirs.state_dict().items()}
    theirs.load_state_dict(silent)
    rounded = Gemma2Model(ours.config, silent, torch.bfloat16)
    expected = theirs.to(torch.bfloat16)(torch.tensor([prompt()])).logits[0]
    assert in_chunks(rounded, prompt(), [PROMPT_LEN]).equal(expected.float())


def test_transformers_loads_the_demo_checkpoint_and_computes_the_same(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY)
    config = Gemma2Config.load(tmp_path)
    ours = Gemma2Model(config, load_weights(tmp_path, config), torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    token_ids = [2, *range(500, 560)]
    with torch.inference_mode():
        expected = theirs(torch.tensor([token_ids])).logits[0]
    for size in (61, 7, 1):
        assert distance(in_chunks(ours, token_ids, [size]), expected) <= TOLERANCE
