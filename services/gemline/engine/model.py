"""Gemma 2's forward pass over a ragged batch and a paged cache. Knows no request and no sampling."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import linear

from gemline.engine.batch import Batch
from gemline.engine.config import Gemma2Config
from gemline.engine.kv_cache import KvCache
from gemline.errors import ConfigurationError
from gemline_kernels import reference
from gemline_kernels.backend import Backend
from gemline_kernels.reference import Angles


@dataclass(frozen=True, slots=True)
class _Linear:
    """y = x . weight^T + bias."""

    weight: torch.Tensor
    bias: torch.Tensor | None

    def __call__(self, x_TD: torch.Tensor) -> torch.Tensor:
        return linear(x_TD, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer's weights: projections that read the same input are one matrix."""

    input_norm_D: torch.Tensor
    post_attention_norm_D: torch.Tensor
    pre_feedforward_norm_D: torch.Tensor
    post_feedforward_norm_D: torch.Tensor
    query_key_value: _Linear
    attention_out: _Linear
    gate_up: _Linear
    down: _Linear


class Gemma2Model:
    """Weights, fused and cast to `dtype`, and the forward pass."""

    def __init__(
        self,
        config: Gemma2Config,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        backend: Backend = reference,
        device: torch.device | str = "cpu",
    ) -> None:
        if dtype not in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            raise ConfigurationError(f"dtype must be float32 or bfloat16, is {name}: Gemma 2's activations overflow it")
        self.config = config
        self.dtype = dtype
        self.device = torch.device(device)
        self._ops = backend
        self._embedding_VD = self._joined(weights, ["model.embed_tokens.weight"])
        self._head_VD = self._embedding_VD if config.tie_word_embeddings else self._joined(weights, ["lm_head.weight"])
        self._final_norm_D = self._joined(weights, ["model.norm.weight"])
        self._layers = [self._layer(weights, layer) for layer in range(config.num_hidden_layers)]
        # Rounded to the model's dtype, as the published code does: in bfloat16 sqrt(3584) is 60.0, not 59.87.
        self._embedding_scale = torch.tensor(math.sqrt(config.hidden_size), dtype=dtype).item()

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KvCache) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows, float32, soft-capped."""
        hidden_TD = self._embedding_VD[batch.token_ids_T] * self._embedding_scale
        angles = self._ops.rope_angles(batch.positions_T, self.config.head_dim, self.config.rope_theta, self.dtype)
        for layer, weights in enumerate(self._layers):
            hidden_TD = self._forward_layer(layer, weights, hidden_TD, angles, batch, cache)
        sampled_BD = self._norm(hidden_TD[batch.sample_rows], self._final_norm_D)
        return self._ops.softcap(linear(sampled_BD, self._head_VD).float(), self.config.final_logit_softcapping)

    def _forward_layer(
        self, layer: int, weights: _Layer, hidden_TD: torch.Tensor, angles: Angles, batch: Batch, cache: KvCache
    ) -> torch.Tensor:
        normed_TD = self._norm(hidden_TD, weights.input_norm_D)
        attended_TD = weights.attention_out(
            self._attend(layer, weights.query_key_value(normed_TD), angles, batch, cache)
        )
        hidden_TD = hidden_TD + self._norm(attended_TD, weights.post_attention_norm_D)
        normed_TD = self._norm(hidden_TD, weights.pre_feedforward_norm_D)
        gate_TF, up_TF = weights.gate_up(normed_TD).chunk(2, dim=-1)
        fed_TD = weights.down(self._ops.geglu(gate_TF, up_TF, self.config.hidden_activation))
        return hidden_TD + self._norm(fed_TD, weights.post_feedforward_norm_D)

    def _attend(
        self, layer: int, projected: torch.Tensor, angles: Angles, batch: Batch, cache: KvCache
    ) -> torch.Tensor:
        config, ops = self.config, self._ops
        num_heads = config.num_attention_heads
        projected = projected.view(len(projected), -1, config.head_dim)
        query_THK, keys_values = projected[:, :num_heads], projected[:, num_heads:]
        keys_TGK, values_TGK = keys_values.chunk(2, dim=1)
        local = config.is_local(layer)
        keys_NSGK, values_NSGK = cache.layer(layer)
        slots_T = batch.local_slots_T if local else batch.global_slots_T
        ops.write_kv(ops.rope(keys_TGK, angles), values_TGK, keys_NSGK, values_NSGK, slots_T)
        out_THK = ops.paged_attention(
            ops.rope(query_THK, angles),
            keys_NSGK,
            values_NSGK,
            batch.local_table_BP if local else batch.global_table_BP,
            batch.query_start,
            batch.context_len,
            window=config.window(layer),
            scale=config.attention_scale,
            cap=config.attn_logit_softcapping,
        )
        return out_THK.flatten(1)

    def _norm(self, x_TD: torch.Tensor, weight_D: torch.Tensor) -> torch.Tensor:
        return self._ops.rms_norm(x_TD, weight_D, self.config.rms_norm_eps)

    def _layer(self, weights: Mapping[str, torch.Tensor], layer: int) -> _Layer:
        prefix = f"model.layers.{layer}."

        def norm(name: str) -> torch.Tensor:
            return self._joined(weights, [f"{prefix}{name}_layernorm.weight"])

        def attention(*names: str) -> _Linear:
            paths = [f"{prefix}self_attn.{name}_proj" for name in names]
            return self._linear(weights, paths, bias=self.config.attention_bias)

        def feedforward(*names: str) -> _Linear:
            return self._linear(weights, [f"{prefix}mlp.{name}_proj" for name in names], bias=False)

        return _Layer(
            input_norm_D=norm("input"),
            post_attention_norm_D=norm("post_attention"),
            pre_feedforward_norm_D=norm("pre_feedforward"),
            post_feedforward_norm_D=norm("post_feedforward"),
            query_key_value=attention("q", "k", "v"),
            attention_out=attention("o"),
            gate_up=feedforward("gate", "up"),
            down=feedforward("down"),
        )

    def _linear(self, weights: Mapping[str, torch.Tensor], paths: Sequence[str], bias: bool) -> _Linear:
        weight = self._joined(weights, [f"{path}.weight" for path in paths])
        return _Linear(weight, self._joined(weights, [f"{path}.bias" for path in paths]) if bias else None)

    def _joined(self, weights: Mapping[str, torch.Tensor], names: Sequence[str]) -> torch.Tensor:
        """Those tensors one below the other, each copied and cast at most once; a single one of our dtype as it is."""
        parts = [weights[name] for name in names]
        if len(parts) == 1:
            return parts[0].to(self.device, self.dtype)
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        joined = torch.empty(shape, dtype=self.dtype, device=self.device)
        start = 0
        for part in parts:
            joined[start : start + len(part)].copy_(part)
            start += len(part)
        return joined
