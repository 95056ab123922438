"""A decode step of transformers' Gemma2ForCausalLM: static cache, as a CUDA graph or compiled by torch."""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from bench.gpu import steps
from bench.gpu.bench import Bench, Case
from bench.gpu.clock import Call, captured
from bench.gpu.plan import STEP
from bench.gpu.report import Row, Target
from support.published import Model
from transformers import AutoModelForCausalLM, Gemma2Config, StaticCache

_AT_LEAST = 3.0
_KEPT_BYTES = 12e9  # for what it makes of keys and values before it multiplies them


def graphs(bench: Bench) -> Iterator[Case]:
    """Every model, in eager mode, captured."""
    for model in bench.sizes.models:
        theirs = build(bench, model)
        for batch in bench.sizes.step_batches:
            yield Case(f"{model.name} x {batch}", partial(measure, bench, model, theirs, batch))
        del theirs


def compiled(bench: Bench) -> Iterator[Case]:
    """The smaller models: compiling takes its time."""
    for model in bench.sizes.models[:2]:
        theirs = build(bench, model)
        for batch in bench.sizes.step_batches:
            yield Case(f"{model.name} x {batch}", partial(measure, bench, model, theirs, batch, is_compiled=True))
        del theirs


def build(bench: Bench, model: Model) -> Any:
    """Random weights in bfloat16, made on the device; attention as it has to be with a cap."""
    fields: dict[str, Any] = {
        "vocab_size": model.vocab_size,
        "hidden_size": model.width,
        "intermediate_size": model.inner,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_groups,
        "head_dim": model.head_dim,
        "query_pre_attn_scalar": model.query_scalar,
        "sliding_window": model.window,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    }
    maker: Any = AutoModelForCausalLM
    with bench.device:
        theirs = maker.from_config(Gemma2Config(**fields), dtype=torch.bfloat16, attn_implementation="eager")
    return theirs.eval().requires_grad_(False)


@dataclass(frozen=True)
class Decoding:
    """Sequences whose next position is the last that the cache holds. Masks are given: to make them would take time."""

    forward: Callable[..., Any]
    cache: Any
    token_ids_BT: torch.Tensor
    position_BT: torch.Tensor
    visible: torch.Tensor

    @torch.no_grad()
    def step(self) -> torch.Tensor:
        """token_ids_B."""
        for layer in self.cache.layers:
            layer.cumulative_length_int = self.visible.shape[-1] - 1
        logits_B1V = self.forward(
            input_ids=self.token_ids_BT,
            attention_mask={"full_attention": self.visible, "sliding_attention": self.visible},
            position_ids=self.position_BT,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        chosen: torch.Tensor = logits_B1V[:, -1].argmax(-1)
        return chosen

    def again(self) -> None:
        """To the same position, before each step."""
        for layer in self.cache.layers:
            layer.cumulative_length.fill_(self.visible.shape[-1] - 1)


def measure(bench: Bench, model: Model, theirs: Any, batch: int, *, is_compiled: bool = False) -> Row:
    """A step of that many sequences, and how many times as fast ours is."""
    torch._dynamo.reset()
    context = min(bench.sizes.step_context, model.window)
    token_ids_BT = torch.randint(0, model.vocab_size, (batch, 1), device=bench.device)
    decoding = Decoding(
        forward=_compiled(bench, theirs) if is_compiled else theirs,
        cache=static_cache(bench, model, theirs.config, batch, context),
        token_ids_BT=token_ids_BT,
        position_BT=torch.full_like(token_ids_BT, context - 1),
        visible=torch.zeros(1, 1, 1, context, dtype=torch.bfloat16, device=bench.device),
    )
    decoding.again()
    replay: Call = decoding.step
    if bench.is_gpu:
        replay = _warmed(decoding) if is_compiled else captured([decoding.step]).replay
    seconds = bench.clock.replay_seconds(replay, decoding.again)
    figures = {"tokens_per_s": batch / seconds}
    ours = bench.report.seconds(STEP, steps.Kind(model, "none", ()).name(batch))
    if math.isnan(ours):
        return Row(f"{model.name} x {batch}", seconds, figures)
    figures["x_slower_than_ours"] = seconds / ours
    return Row(f"{model.name} x {batch}", seconds, figures, Target("x_slower_than_ours", _AT_LEAST))


def _compiled(bench: Bench, theirs: Any) -> Any:
    """Not where a step is only to be made once."""
    return torch.compile(theirs, mode="reduce-overhead", fullgraph=True) if bench.is_gpu else theirs


def _warmed(decoding: Decoding) -> Call:
    """Compiled, and captured by torch."""
    for _ in range(3):
        decoding.again()
        decoding.step()
    return decoding.step


def static_cache(bench: Bench, model: Model, config: Any, batch: int, context: int) -> Any:
    """Full but for one position. Layers share keys and values where there is no memory for all of them."""
    cache: Any = StaticCache(config=config, max_cache_len=context)
    one = torch.zeros(batch, model.num_groups, 1, model.head_dim, dtype=torch.bfloat16, device=bench.device)
    each = 2 * one.nbytes * context
    distinct = min(model.num_layers, max(2, 2 * int((bench.free_bytes - _KEPT_BYTES) // each // 2)))
    for index in range(model.num_layers):
        layer = cache.layers[index]
        if index < distinct:
            layer.lazy_initialization(one, one)
            layer.keys.normal_()
            layer.values.normal_()
            continue
        cache.layers[index] = copy.copy(cache.layers[index % distinct])  # of the same kind: they take turns
        cache.layers[index].cumulative_length = layer.cumulative_length.to(bench.device)
    return cache
