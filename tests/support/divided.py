"""A small Gemma 2 of random weights that can be divided, and engines of it among ranks that are threads."""

from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from support.thread_ranks import together

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine
from gemline.engine.group import follow_with
from gemline.engine.loading import Loaded, LoadReport
from gemline.engine.model import Gemma2Model
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.ranks import Ranks
from gemline_kernels import reference
from gemline_kernels.backend import Backend

T = TypeVar("T")

CONFIG = Gemma2Config(
    vocab_size=331,  # no degree divides it
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=2,
    head_dim=16,
    max_position_embeddings=128,
    query_pre_attn_scalar=24.0,
    sliding_window=9,
    attention_bias=True,
)
OPTIONS = EngineOptions(num_kv_blocks=200, block_size=4, max_batch_tokens=16, max_running=6, num_threads=1)


def weights_of(config: Gemma2Config) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(shape, generator=generator) * (0.3 if name.endswith("norm.weight") else shape[-1] ** -0.5)
        for name, shape in config.parameter_shapes().items()
    }


def parts_of(weights: Mapping[str, torch.Tensor], part: Part) -> dict[str, torch.Tensor]:
    return {name: tensor[part.cut(name)] * (1.0 if part.adds(name) else 0.0) for name, tensor in weights.items()}


def whole_engine(config: Gemma2Config, options: EngineOptions = OPTIONS, ops: Backend = reference) -> Engine:
    return Engine(Gemma2Model(config, weights_of(config), torch.float32, ops), config, options, "revision")


def divided_engine(
    num_ranks: int,
    config: Gemma2Config,
    use: Callable[[Engine], T],
    options: EngineOptions = OPTIONS,
    ops: Backend = reference,
) -> T:
    """What `use` makes of an engine among so many ranks, which it need not end."""
    found = together(num_ranks, lambda ranks: use_on_rank(ranks, config, use, options, ops))[0]
    assert found is not None
    return found


def use_on_rank(
    ranks: Ranks, config: Gemma2Config, use: Callable[[Engine], T], options: EngineOptions, ops: Backend
) -> T | None:
    """What `use` makes of the engine on rank 0; the other ranks compute along."""
    part = Part(config, ranks.rank, ranks.size)
    model = Gemma2Model(config, parts_of(weights_of(config), part), torch.float32, ops, ranks=ranks)
    if ranks.rank == 0:
        engine = Engine(model, config, options, "revision", ranks=ranks)
        found = use(engine)
        engine.end()
        return found
    report = LoadReport(ops.name, "float32", "none", "float32", 0, 0.0)
    follow_with(Loaded(model, options.for_device(ops.device.type), "revision", report), ranks)
    return None
