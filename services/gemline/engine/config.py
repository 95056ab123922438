"""The shape of a Gemma 2 model as config.json tells it: every Gemma2ForCausalLM, of any size. Knows no torch."""

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from gemline.engine.json_fields import JsonFields, read_json_object
from gemline.engine.layout import Layout
from gemline.engine.layout_config import read_kv_scheme, read_layout

ACTIVATIONS = ("gelu_pytorch_tanh", "gelu", "silu", "relu")
_ARCHITECTURE = "Gemma2ForCausalLM"
_MAX_LAYERS = 2**12
_MAX_SIZE = 2**24
_LOCAL, _GLOBAL = "sliding_attention", "full_attention"  # the spellings of layer_types


class LayerKind(Enum):
    """What a layer's queries see: the last `sliding_window` positions, or all."""

    LOCAL = "local"
    GLOBAL = "global"


@dataclass(frozen=True, slots=True)
class Gemma2Config:
    """The values of config.json under their own names; each default is the one that an absent key stands for."""

    vocab_size: int = 256000
    hidden_size: int = 2304
    intermediate_size: int = 9216
    num_hidden_layers: int = 26
    num_attention_heads: int = 8
    num_key_value_heads: int = 4
    head_dim: int = 256
    hidden_activation: str = "gelu_pytorch_tanh"
    max_position_embeddings: int = 8192
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0
    query_pre_attn_scalar: float = 256.0
    sliding_window: int = 4096
    attn_logit_softcapping: float | None = 50.0
    final_logit_softcapping: float | None = 30.0
    attention_bias: bool = False
    tie_word_embeddings: bool = True
    bos_token_id: int = 2
    stop_token_ids: tuple[int, ...] = (1,)  # of config.json and generation_config.json together, ascending
    layer_kinds: tuple[LayerKind, ...] = ()  # one a layer; empty means local, global, local, ...
    layout: Layout | None = None  # of matrices that are stored quantised; None: there are none
    has_kv_scales: bool = False  # whether the checkpoint says what an fp8 cache divides keys and values by

    def __post_init__(self) -> None:
        if not self.layer_kinds:
            object.__setattr__(self, "layer_kinds", _alternating(self.num_hidden_layers))

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """Reads config.json and, where present, generation_config.json.

        Raises CheckpointError that names the file, the key and the values when the model is not one we can serve.
        """
        path = model_dir / "config.json"
        fields = JsonFields(path, read_json_object(path))
        _refuse_other_models(fields)
        stop_token_ids = {*fields.token_ids("eos_token_id"), *_generation_stop_ids(model_dir)}
        num_layers = fields.integer("num_hidden_layers", 26, 1, _MAX_LAYERS)
        config = cls(
            vocab_size=_size(fields, "vocab_size", 256000),
            hidden_size=_size(fields, "hidden_size", 2304),
            intermediate_size=_size(fields, "intermediate_size", 9216),
            num_hidden_layers=num_layers,
            num_attention_heads=_size(fields, "num_attention_heads", 8),
            num_key_value_heads=_size(fields, "num_key_value_heads", 4),
            head_dim=_size(fields, "head_dim", 256),
            hidden_activation=_activation(fields),
            max_position_embeddings=_size(fields, "max_position_embeddings", 8192),
            rms_norm_eps=fields.positive("rms_norm_eps", 1e-6),
            rope_theta=_rope_theta(fields),
            query_pre_attn_scalar=fields.positive("query_pre_attn_scalar", 256.0),
            sliding_window=_size(fields, "sliding_window", 4096),
            attn_logit_softcapping=fields.optional_positive("attn_logit_softcapping", 50.0),
            final_logit_softcapping=fields.optional_positive("final_logit_softcapping", 30.0),
            attention_bias=fields.flag("attention_bias", False),
            tie_word_embeddings=fields.flag("tie_word_embeddings", True),
            bos_token_id=fields.integer("bos_token_id", 2, 0, _MAX_SIZE),
            stop_token_ids=tuple(sorted(stop_token_ids or {1})),
            layer_kinds=_layer_kinds(fields, num_layers),
            layout=read_layout(fields),
            has_kv_scales=read_kv_scheme(fields),
        )
        _check_together(config, fields)
        return config

    @property
    def num_local_layers(self) -> int:
        """Layers with a window."""
        return self.num_layers_of(LayerKind.LOCAL)

    @property
    def num_global_layers(self) -> int:
        """Layers that see the whole context."""
        return self.num_layers_of(LayerKind.GLOBAL)

    @property
    def attention_scale(self) -> float:
        """What a query-key product is multiplied by, before the soft-cap."""
        return float(self.query_pre_attn_scalar**-0.5)

    def num_layers_of(self, kind: LayerKind) -> int:
        """How many layers are of that kind."""
        return self.layer_kinds.count(kind)

    def is_local(self, layer: int) -> bool:
        """Whether that layer has a window."""
        return self.layer_kinds[layer] is LayerKind.LOCAL

    def window(self, layer: int) -> int | None:
        """How many positions, its own included, a query of that layer sees; None for all."""
        return self.sliding_window if self.is_local(layer) else None

    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the model, by its Hugging Face name; lm_head.weight only when it is not tied.

        A checkpoint holds them, or of a matrix that is stored quantised the tensors that `layout` says.
        """
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, self.hidden_size)}
        for layer in range(self.num_hidden_layers):
            shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in self._layer_shapes().items()}
        shapes["model.norm.weight"] = (self.hidden_size,)
        if not self.tie_word_embeddings:
            shapes["lm_head.weight"] = (self.vocab_size, self.hidden_size)
        return shapes

    def _layer_shapes(self) -> dict[str, tuple[int, ...]]:
        query, key = self.num_attention_heads * self.head_dim, self.num_key_value_heads * self.head_dim
        width, inner = self.hidden_size, self.intermediate_size
        norms = ("input", "post_attention", "pre_feedforward", "post_feedforward")
        shapes: dict[str, tuple[int, ...]] = {f"{norm}_layernorm.weight": (width,) for norm in norms}
        for name, rows, columns in (("q", query, width), ("k", key, width), ("v", key, width), ("o", width, query)):
            shapes[f"self_attn.{name}_proj.weight"] = (rows, columns)
            if self.attention_bias:
                shapes[f"self_attn.{name}_proj.bias"] = (rows,)
        shapes |= {"mlp.gate_proj.weight": (inner, width), "mlp.up_proj.weight": (inner, width)}
        return shapes | {"mlp.down_proj.weight": (width, inner)}


def _alternating(num_layers: int) -> tuple[LayerKind, ...]:
    return tuple(LayerKind.GLOBAL if layer % 2 else LayerKind.LOCAL for layer in range(num_layers))


def _size(fields: JsonFields, key: str, default: int) -> int:
    return fields.integer(key, default, 1, _MAX_SIZE)


def _refuse_other_models(fields: JsonFields) -> None:
    architectures = fields.raw("architectures")
    if architectures is not None and architectures != [_ARCHITECTURE]:
        raise fields.fail("architectures", f'must be ["{_ARCHITECTURE}"], is {architectures!r:.200}')
    if fields.text("model_type", "gemma2") != "gemma2":
        raise fields.fail("model_type", f"must be 'gemma2', is {fields.raw('model_type')!r:.200}")
    if fields.flag("use_bidirectional_attention", False):
        raise fields.fail("use_bidirectional_attention", "must be false: a generating model's attention is causal")


def _activation(fields: JsonFields) -> str:
    name = fields.text("hidden_activation", ACTIVATIONS[0])
    if name not in ACTIVATIONS:
        raise fields.fail("hidden_activation", f"must be one of {', '.join(ACTIVATIONS)}, is {name!r:.200}")
    return name


def _rope_theta(fields: JsonFields) -> float:
    """From rope_parameters (transformers 5) or rope_theta (transformers 4); rotations that are scaled are refused."""
    for key in ("rope_parameters", "rope_scaling"):
        section = fields.section(key)
        for spelling in ("rope_type", "type"):
            if (rope_type := section.text(spelling, "default")) != "default":
                raise section.fail(spelling, f"must be 'default', is {rope_type!r:.200}")
        for unknown in section.unknown(("rope_type", "type", "rope_theta")):
            raise section.fail(unknown, "is not supported: Gemma 2 has one unscaled rotation for all layers")
    parameters = fields.section("rope_parameters")
    return (parameters if "rope_theta" in parameters else fields).positive("rope_theta", 10000.0)


def _layer_kinds(fields: JsonFields, num_layers: int) -> tuple[LayerKind, ...]:
    named = fields.raw("layer_types")
    if named is None:
        return _alternating(num_layers)
    if not isinstance(named, list) or not all(name in (_LOCAL, _GLOBAL) for name in named):
        raise fields.fail("layer_types", f"must list {_LOCAL!r} and {_GLOBAL!r} only, is {named!r:.200}")
    if len(named) != num_layers:
        raise fields.fail("layer_types", f"lists {len(named)} layers but num_hidden_layers is {num_layers}")
    return tuple(LayerKind.LOCAL if name == _LOCAL else LayerKind.GLOBAL for name in named)


def _generation_stop_ids(model_dir: Path) -> tuple[int, ...]:
    path = model_dir / "generation_config.json"
    return JsonFields(path, read_json_object(path)).token_ids("eos_token_id") if path.exists() else ()


def _check_together(config: Gemma2Config, fields: JsonFields) -> None:
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    if heads % kv_heads:
        raise fields.fail("num_attention_heads", f"{heads} is not a multiple of num_key_value_heads {kv_heads}")
    if config.head_dim % 2:
        raise fields.fail("head_dim", f"must be even to be rotated, is {config.head_dim}")
    if config.num_local_layers and fields.is_null("sliding_window"):
        raise fields.fail("sliding_window", f"is null, but {config.num_local_layers} layers need a window")
    if config.bos_token_id >= config.vocab_size:
        raise fields.fail("bos_token_id", f"{config.bos_token_id} is not under vocab_size {config.vocab_size}")
