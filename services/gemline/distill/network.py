"""Gemma 2 as a function of its weights that autograd can follow. Knows no cache, no files and no data."""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch.nn import functional

from gemline.distill.attention import attend, rope_tables, rotate
from gemline.engine.config import Gemma2Config

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "gelu_pytorch_tanh": lambda gate: functional.gelu(gate, approximate="tanh"),
    "gelu": functional.gelu,
    "silu": functional.silu,
    "relu": functional.relu,
}


class _Layer(NamedTuple):
    """The weights of a layer as they are used: projections that read the same are one matrix."""

    norms: tuple[torch.Tensor, ...]  # input, post attention, pre MLP, post MLP: [D] each
    query_key_value: torch.Tensor
    bias: torch.Tensor | None
    attention_out: torch.Tensor
    out_bias: torch.Tensor | None
    gate_up: torch.Tensor
    down: torch.Tensor


class Network:
    """A Gemma 2 model in training. `weights` are the checkpoint's tensors by their Hugging Face names.

    With `compiled`, layers are fused by torch.compile: one more compilation for each new shape of a batch.
    """

    def __init__(self, config: Gemma2Config, weights: Mapping[str, torch.Tensor], *, compiled: bool = False) -> None:
        self.config = config
        self.weights = dict(weights)
        embedding = self.weights[EMBEDDING]
        self._tables = rope_tables(config.max_position_embeddings, config.head_dim, config.rope_theta, embedding.device)
        self._scale = torch.tensor(math.sqrt(config.hidden_size), dtype=embedding.dtype).item()
        self._apply = _compiled_layer() if compiled else _apply_layer

    @property
    def device(self) -> torch.device:
        """Where its weights are, and a batch has to be."""
        return self.weights[EMBEDDING].device

    def hidden(self, ids_BT: torch.Tensor) -> torch.Tensor:
        """The final norm's output, [B, T, D]. Rows are independent; what stands behind a row's end is of no matter."""
        config = self.config
        num_tokens = ids_BT.shape[1]
        residual_BTD = self.weights[EMBEDDING][ids_BT] * self._scale
        for index in range(config.num_hidden_layers):
            window = config.window(index)
            narrow = window is not None and window < num_tokens
            residual_BTD = self._apply(
                residual_BTD, self._layer(index), self._tables, config, window if narrow else None
            )
        return rms_norm(residual_BTD, self.weights["model.norm.weight"], config.rms_norm_eps)

    def logits(self, hidden_TD: torch.Tensor) -> torch.Tensor:
        """Soft-capped logits_TV of some rows of `hidden`, float32."""
        head = self.weights[EMBEDDING if self.config.tie_word_embeddings else HEAD]
        logits_TV = functional.linear(hidden_TD, head).float()
        cap = self.config.final_logit_softcapping
        return logits_TV if cap is None else cap * torch.tanh(logits_TV / cap)

    def _layer(self, index: int) -> _Layer:
        prefix = f"model.layers.{index}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        has_bias = self.config.attention_bias
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        weights = self.weights
        return _Layer(
            norms=tuple(weights[f"{prefix}{norm}_layernorm.weight"] for norm in norms),
            query_key_value=torch.cat([weights[f"{attention}{name}_proj.weight"] for name in "qkv"]),
            bias=torch.cat([weights[f"{attention}{name}_proj.bias"] for name in "qkv"]) if has_bias else None,
            attention_out=weights[f"{attention}o_proj.weight"],
            out_bias=weights[f"{attention}o_proj.bias"] if has_bias else None,
            gate_up=torch.cat([weights[f"{mlp}gate_proj.weight"], weights[f"{mlp}up_proj.weight"]]),
            down=weights[f"{mlp}down_proj.weight"],
        )


def rms_norm(values: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """values / rms(values) * (1 + weight), computed in float32."""
    wide = values.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * (1.0 + weight_D.float())).type_as(values)


def _apply_layer(
    residual_BTD: torch.Tensor, layer: _Layer, tables: torch.Tensor, config: Gemma2Config, window: int | None
) -> torch.Tensor:
    """residual + norm(attention(norm(residual))), then the same with the MLP."""
    num_heads, num_groups, width = config.num_attention_heads, config.num_key_value_heads, config.head_dim
    num_rows, num_tokens, _ = residual_BTD.shape
    before_attention, after_attention, before_mlp, after_mlp = layer.norms
    normed = rms_norm(residual_BTD, before_attention, config.rms_norm_eps)
    joined = functional.linear(normed, layer.query_key_value, layer.bias)
    heads = joined.view(num_rows, num_tokens, num_heads + 2 * num_groups, width).transpose(1, 2)
    query, key, value = torch.split(heads, [num_heads, num_groups, num_groups], 1)
    attended = attend(
        rotate(query, tables),
        rotate(key, tables),
        value,
        window,
        config.attention_scale,
        config.attn_logit_softcapping,
    )
    attended = attended.transpose(1, 2).reshape(num_rows, num_tokens, num_heads * width)
    written = functional.linear(attended, layer.attention_out, layer.out_bias)
    residual_BTD = residual_BTD + rms_norm(written, after_attention, config.rms_norm_eps)
    normed = rms_norm(residual_BTD, before_mlp, config.rms_norm_eps)
    gate, up = functional.linear(normed, layer.gate_up).chunk(2, -1)
    written = functional.linear(_ACTIVATIONS[config.hidden_activation](gate) * up, layer.down)
    return residual_BTD + rms_norm(written, after_mlp, config.rms_norm_eps)


def _compiled_layer() -> Callable[..., torch.Tensor]:
    torch._dynamo.config.recompile_limit = 256  # one for each shape of batch and kind of layer
    return torch.compile(_apply_layer, dynamic=False)


def fresh_weights(config: Gemma2Config, seed: int, device: str = "cpu") -> dict[str, torch.Tensor]:
    """Float32 weights to begin with, each of which wants its gradient. Norms are 0, which acts as 1; biases too."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, sizes in config.parameter_shapes().items():
        deviation = 0.0 if len(sizes) == 1 else sizes[-1] ** -0.5
        values = torch.randn(sizes, generator=generator) * deviation
        weights[name] = values.to(device).requires_grad_()
    return weights
