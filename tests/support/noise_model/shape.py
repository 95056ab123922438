"""How large a checkpoint of noise is. Plain data."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DemoShape:
    """The sizes of config.json that differ between demo checkpoints, under their names there."""

    name: str
    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    query_pre_attn_scalar: int
    sliding_window: int
    max_position_embeddings: int
    embedding_rms: float  # of a token in the residual stream, where every sublayer adds about 1
    knows_bigrams: bool  # its words look like words; needs hidden_size of a few hundred


DEMO = DemoShape(
    name="gemline-demo",
    num_hidden_layers=6,
    hidden_size=256,
    intermediate_size=768,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    query_pre_attn_scalar=48,
    sliding_window=256,
    max_position_embeddings=2048,
    embedding_rms=1.0,
    knows_bigrams=True,
)

TINY = DemoShape(
    name="gemline-tiny",
    num_hidden_layers=2,
    hidden_size=32,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    query_pre_attn_scalar=24,
    sliding_window=16,
    max_position_embeddings=256,
    embedding_rms=0.3,
    knows_bigrams=False,
)
