"""A model of any size with random weights, made where it is to run, and a cache of random keys and values."""

import math

import torch
from support.published import Model

from gemline_kernels import reference
from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.layers import KeysValues, LayerWeights, Stack, Weights

CAP, FINAL_CAP, EPS, THETA = 50.0, 30.0, 1e-6, 10000.0
_ACTIVATION = "gelu_pytorch_tanh"


def random_weights(
    ops: Backend,
    model: Model,
    num_positions: int,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization = "none",
) -> Weights:
    """Packed by `ops`: the same for every backend. Activations stay of the size of 1."""
    random = torch.Generator(device).manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=random, device=device, dtype=dtype)

    def matrix(num_outputs: int, num_inputs: int) -> torch.Tensor:
        return normal(num_outputs, num_inputs).mul_(1 / math.sqrt(num_inputs))

    def norm() -> torch.Tensor:
        return normal(model.width).mul_(0.2)

    def layer(index: int) -> LayerWeights:
        return LayerWeights(
            window=model.window_of(index),
            query_key_value=ops.linear(matrix(model.num_parts * model.head_dim, model.width), None, quantization),
            attention_out=ops.linear(matrix(model.width, model.num_heads * model.head_dim), None, quantization),
            gate_up=ops.gated(
                matrix(model.inner, model.width), matrix(model.inner, model.width), _ACTIVATION, quantization
            ),
            down=ops.linear(matrix(model.width, model.inner), None, quantization),
            post_attention_norm_D=norm(),
            pre_feedforward_norm_D=norm(),
            post_feedforward_norm_D=norm(),
            next_norm_D=norm(),
        )

    stack = Stack(
        layers=tuple(layer(index) for index in range(model.num_layers)),
        first_norm_D=norm(),
        rope_table=reference.rope_table(num_positions, model.head_dim, THETA, device),
        num_heads=model.num_heads,
        num_groups=model.num_groups,
        head_dim=model.head_dim,
        scale=model.scale,
        cap=CAP,
        eps=EPS,
    )
    embedding = ops.embedding(matrix(model.vocab_size, model.width), quantization)
    return Weights(embedding, math.sqrt(model.width), stack, embedding, FINAL_CAP)


def random_pool(
    model: Model, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device, seed: int = 0
) -> KeysValues:
    """One layer's cache."""
    random = torch.Generator(device).manual_seed(seed)
    shape = (num_blocks, block_size, model.num_groups, model.head_dim)
    exact = torch.float32 if dtype == torch.float32 else torch.bfloat16
    keys, values = (torch.randn(shape, generator=random, device=device, dtype=exact).to(dtype) for _ in range(2))
    return KeysValues(keys, values)
