"""Gemma 2's forward pass over a ragged batch and a paged cache. Knows no request and no sampling."""

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from gemline.engine.batch import Batch, Score
from gemline.engine.blocks import num_blocks_for
from gemline.engine.config import Gemma2Config
from gemline.engine.divided import SharedVocabulary, Summed
from gemline.engine.kv_cache import KvCache
from gemline.engine.part import Part
from gemline.engine.ranks import Ranks
from gemline.engine.weights import Weights as Stored
from gemline.errors import ConfigurationError
from gemline_kernels import reference
from gemline_kernels.backend import Backend, Embedding, Gated, Linear, Quantization
from gemline_kernels.decoding import Decoder
from gemline_kernels.layers import LayerWeights, Stack, Weights
from gemline_kernels.quantize import Int4Groups, joined
from gemline_kernels.vocabulary import Vocabulary

_SCORED_AT_ONCE = 32  # rows: 32 MB of logits over 256000 tokens
_TELL_EVERY_S = 5.0  # how far loading is
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


_log = logging.getLogger(__name__)


class Gemma2Model:
    """Packed weights and the forward pass.

    Each tensor of `weights` is looked up once and let go as soon as it is packed: of a mapping that reads tensors
    when they are asked for, no more than one packed matrix's sources are there beside the packed ones.

    In float32 the result is the published code's. In bfloat16 so is what Gemma 2 was trained with (embeddings scaled
    by sqrt(D) in bfloat16, every matrix product and the residual stream rounded), but what the published code rounds
    inside an operation (between norm and residual add, or the rotation's angles) stays float32.
    """

    def __init__(
        self,
        config: Gemma2Config,
        weights: Mapping[str, torch.Tensor],
        dtype: torch.dtype,
        backend: Backend = reference,
        quantization: Quantization = "none",
        ranks: Ranks | None = None,
    ) -> None:
        """Among `ranks`, the weights are this one's parts, `config` is still the whole model's, and the logits that
        `forward` gives are those of this rank's tokens.
        """
        if dtype not in (torch.float32, torch.bfloat16):
            name = str(dtype).removeprefix("torch.")
            raise ConfigurationError(f"dtype must be float32 or bfloat16, is {name}: Gemma 2's activations overflow it")
        self.config = config
        self.dtype = dtype
        self.device = backend.device
        self._backend = backend
        part = Part(config) if ranks is None else Part(config, ranks.rank, ranks.size)
        packer = _Packer(part, weights, dtype, backend, quantization, ranks)
        embedding = packer.embedding(_EMBEDDING)
        self.weights = Weights(
            embedding=embedding,
            # Rounded to the model's dtype, as the published code does: in bfloat16 sqrt(3584) is 60.0, not 59.87.
            embedding_scale=torch.tensor(math.sqrt(config.hidden_size), dtype=dtype).item(),
            stack=packer.stack(),
            head=embedding if config.tie_word_embeddings else packer.embedding(_HEAD),
            final_cap=config.final_logit_softcapping,
        )
        self._vocabulary = None if ranks is None else Vocabulary(config.vocab_size, ranks)
        self._layers = backend.layers(self.weights.stack)

    @torch.inference_mode()
    def forward(self, batch: Batch, cache: KvCache, score: Score | None = None) -> torch.Tensor:
        """Writes the batch's keys and values into the cache; logits_BV of sample_rows, float32, soft-capped.

        Those of the scored rows go to `score` instead.
        """
        weights, on_device = self.weights, batch.to(self.device)
        residual_TD = weights.embedding.rows(on_device.token_ids_T, weights.embedding_scale)
        sampled_BD = self._layers(residual_TD, on_device, cache.pools)
        num_sampled = len(sampled_BD) - batch.num_scored
        for start in range(num_sampled, len(sampled_BD), _SCORED_AT_ONCE):
            scored_RD = sampled_BD[start : start + _SCORED_AT_ONCE]
            if score is not None:
                score(start - num_sampled, weights.head.logits(scored_RD, weights.final_cap))
        return weights.head.logits(sampled_BD[:num_sampled], weights.final_cap)

    def decoder(self, cache: KvCache, num_rows: int) -> Decoder | None:
        """Rows for decode steps on the device, over that cache; None where a forward pass is as good.

        All ranks of a model ask at a time.
        """
        num_blocks = num_blocks_for(self.config.max_position_embeddings, cache.block_size)
        return self._backend.decoder(self.weights, cache.pools, num_rows, num_blocks, self._vocabulary)


@dataclass(frozen=True, slots=True)
class _Packer:
    """Checkpoint tensors by name to packed weights."""

    part: Part
    weights: Mapping[str, torch.Tensor]
    dtype: torch.dtype
    ops: Backend
    quantization: Quantization
    ranks: Ranks | None

    @property
    def config(self) -> Gemma2Config:
        return self.part.own_config

    def embedding(self, name: str) -> Embedding:
        own = self.ops.embedding(self._joined([name]), self.quantization)
        return own if self.ranks is None else SharedVocabulary(own, self.part.tokens, self.ranks)

    def stack(self) -> Stack:
        config = self.config
        return Stack(
            first_norm_D=self._input_norm(0),
            layers=tuple(self._layers()),
            rope_table=reference.rope_table(
                config.max_position_embeddings, config.head_dim, config.rope_theta, self.ops.device
            ),
            num_heads=config.num_attention_heads,
            num_groups=config.num_key_value_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            cap=config.attn_logit_softcapping,
            eps=config.rms_norm_eps,
        )

    def _layers(self) -> Iterator[LayerWeights]:
        number, told_s = self.config.num_hidden_layers, time.monotonic()
        for layer in range(number):
            yield self._layer(layer)
            if (now_s := time.monotonic()) - told_s >= _TELL_EVERY_S:
                told_s = now_s
                _log.info("%d of %d layers are loaded", layer + 1, number)

    def _layer(self, layer: int) -> LayerWeights:
        prefix = f"model.layers.{layer}."
        gate, up = (f"{prefix}mlp.{name}_proj.weight" for name in ("gate", "up"))
        return LayerWeights(
            window=self.config.window(layer),
            query_key_value=self._linear(
                [f"{prefix}self_attn.{name}_proj" for name in "qkv"], self.config.attention_bias
            ),
            attention_out=self._summed(self._linear([f"{prefix}self_attn.o_proj"], self.config.attention_bias)),
            gate_up=self._gated(gate, up),
            down=self._summed(self._linear([f"{prefix}mlp.down_proj"], has_bias=False)),
            post_attention_norm_D=self._joined([prefix + "post_attention_layernorm.weight"]),
            pre_feedforward_norm_D=self._joined([prefix + "pre_feedforward_layernorm.weight"]),
            post_feedforward_norm_D=self._joined([prefix + "post_feedforward_layernorm.weight"]),
            next_norm_D=self._input_norm(layer + 1),
        )

    def _input_norm(self, layer: int) -> torch.Tensor:
        """Of the layer after the last one: the model's final norm."""
        is_last = layer == self.config.num_hidden_layers
        return self._joined(["model.norm.weight" if is_last else f"model.layers.{layer}.input_layernorm.weight"])

    def _linear(self, paths: Sequence[str], has_bias: bool) -> Linear:
        bias_N = self._joined([f"{path}.bias" for path in paths]) if has_bias else None
        names = [f"{path}.weight" for path in paths]
        if groups := self._groups(names):
            return self.ops.linear_int4(joined(groups), bias_N)
        return self.ops.linear(self._joined(names), bias_N, self.quantization)

    def _gated(self, gate: str, up: str) -> Gated:
        activation = self.config.hidden_activation
        if groups := self._groups([gate, up]):
            return self.ops.gated_int4(groups[0], groups[1], activation)
        return self.ops.gated(*self._halves(gate, up), activation, self.quantization)

    def _groups(self, names: Sequence[str]) -> list[Int4Groups]:
        """Of matrices that a checkpoint has in int4 as we keep it; empty unless all are."""
        if not isinstance(self.weights, Stored):
            return []
        found = []
        for name in names:
            if (groups := self.weights.int4_groups(name)) is None:
                return []
            found.append(groups.to(self.ops.device))
        return found

    def _summed(self, own: Linear) -> Linear:
        return own if self.ranks is None else Summed(own, self.ranks)

    def _joined(self, names: Sequence[str]) -> torch.Tensor:
        """Those tensors one below the other, each copied and cast at most once; a single one of our dtype as it is."""
        parts = [self.weights[name] for name in names]
        return self._alone(parts[0]) if len(parts) == 1 else self._copied(parts)

    def _halves(self, upper: str, lower: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as they are, or, if they must be copied, in one piece of memory: to stack them needs no second copy."""
        parts = [self.weights[name] for name in (upper, lower)]
        if all(part.dtype == self.dtype and part.device == self.ops.device for part in parts):
            return self._alone(parts[0]), self._alone(parts[1])
        whole, size = self._copied(parts), len(parts[0])
        return whole[:size], whole[size:]

    def _alone(self, part: torch.Tensor) -> torch.Tensor:
        return part.to(self.ops.device, self.dtype).contiguous()

    def _copied(self, parts: Sequence[torch.Tensor]) -> torch.Tensor:
        shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
        joined = torch.empty(shape, dtype=self.dtype, device=self.ops.device)
        start = 0
        for part in parts:
            joined[start : start + len(part)].copy_(part)
            start += len(part)
        return joined
