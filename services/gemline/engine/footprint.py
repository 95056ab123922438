"""What one rank of a tensor-parallel group holds: weights, and keys and values of each token. Arithmetic alone.

Formats: gemline_kernels/quantize.py.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.part import Part

WeightForm = Literal["f32", "bf16", "fp8", "int8", "int4"]
CacheForm = Literal["f32", "bf16", "fp8"]
CACHE_BYTES: dict[CacheForm, int] = {"f32": 4, "bf16": 2, "fp8": 1}  # of one key's or value's number
_GROUP = 128  # inputs that share a scale in int4


class Matrix(NamedTuple):
    """Of a linear layer, [rows, columns]."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns

    def num_bytes(self, form: WeightForm) -> int:
        """As it is packed, with its scales."""
        match form:
            case "f32":
                return 4 * self.size
            case "bf16":
                return 2 * self.size
            case "fp8" | "int8":
                return self.size + 4 * self.rows
            case "int4":
                return (self.size + 1) // 2 + 2 * self.rows * -(-self.columns // _GROUP)


@dataclass(frozen=True, slots=True)
class Footprint:
    """One rank's part of a model.

    What is divided how: `engine.part`. Norms are everywhere.
    """

    config: Gemma2Config
    weights: WeightForm = "bf16"
    cache: CacheForm = "bf16"
    num_ranks: int = 1

    @property
    def own(self) -> Gemma2Config:
        """The shape of its layers. Raises ConfigurationError when the model cannot be divided so."""
        return Part(self.config, 0, self.num_ranks).own_config

    @property
    def layer_matrices(self) -> tuple[Matrix, ...]:
        """Of one layer."""
        own = self.own
        width, inner = own.hidden_size, own.intermediate_size
        query, key = own.num_attention_heads * own.head_dim, own.num_key_value_heads * own.head_dim
        return (
            Matrix(query + 2 * key, width),
            Matrix(width, query),
            Matrix(inner, width),
            Matrix(inner, width),
            Matrix(width, inner),
        )

    @property
    def embedding(self) -> Matrix:
        """Its rows of the embedding, and of the head."""
        return Matrix(-(-self.config.vocab_size // self.num_ranks), self.config.hidden_size)

    @property
    def linear_size(self) -> int:
        """Numbers in all layers' matrices."""
        return self.config.num_hidden_layers * sum(matrix.size for matrix in self.layer_matrices)

    @property
    def linear_bytes(self) -> int:
        """All layers' matrices, as they are packed."""
        return self.config.num_hidden_layers * sum(matrix.num_bytes(self.weights) for matrix in self.layer_matrices)

    @property
    def embedding_bytes(self) -> int:
        """Of embedding or head; of int4 weights they are int8."""
        return self.embedding.num_bytes("int8" if self.weights == "int4" else self.weights)

    @property
    def norm_bytes(self) -> int:
        """Of all norms, in bfloat16 or, beside such weights, float32."""
        return (4 if self.weights == "f32" else 2) * (4 * self.config.num_hidden_layers + 1) * self.config.hidden_size

    @property
    def weight_bytes(self) -> int:
        """All that is kept of the checkpoint."""
        ends = self.embedding_bytes * (1 if self.config.tie_word_embeddings else 2)
        return self.linear_bytes + ends + self.norm_bytes

    def token_bytes(self, kind: LayerKind) -> int:
        """Keys and values of one position in all layers of that kind."""
        of_layer = 2 * self.own.num_key_value_heads * self.config.head_dim * CACHE_BYTES[self.cache]
        return self.config.num_layers_of(kind) * of_layer

    def sequence_bytes(self, num_tokens: int) -> int:
        """Keys and values of a whole sequence: of local layers no more than the window."""
        local = min(num_tokens, self.config.sliding_window)
        return num_tokens * self.token_bytes(LayerKind.GLOBAL) + local * self.token_bytes(LayerKind.LOCAL)
