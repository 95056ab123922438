"""The operations a backend has to offer. `reference` says what each means; the others are held to it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import torch

from gemline_kernels.quantize import Int4Groups
from gemline_kernels.scales import UNSCALED, Scales

if TYPE_CHECKING:
    from gemline_kernels.decoding import Decoder
    from gemline_kernels.layers import KeysValues, Layers, Stack, Weights
    from gemline_kernels.vocabulary import Vocabulary

Quantization = Literal["none", "int8", "int4", "fp8"]


class RopeTable(NamedTuple):
    """Rotations of the positions [0, P): cos_PK and sin_PK of dimension pair k, [P, K / 2], float32."""

    cos_PK: torch.Tensor
    sin_PK: torch.Tensor


class Normed(NamedTuple):
    """What leaves a layer's half: the stream that the next half adds to, and the same normed for it to read."""

    residual_TD: torch.Tensor
    normed_TD: torch.Tensor


class Linear(Protocol):
    """A packed weight_ND."""

    @property
    def num_bytes(self) -> int:
        """Memory that the packed weight takes."""

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        """y_TN = x . weight^T + bias, in x's dtype."""


class Gated(Protocol):
    """The first half of a gated MLP: packed gate_FD and up_FD."""

    @property
    def num_bytes(self) -> int:
        """Memory that both packed weights take."""

    def __call__(self, x_TD: torch.Tensor, /) -> torch.Tensor:
        """y_TF = activation(x . gate^T) * (x . up^T), in x's dtype."""


class Embedding(Protocol):
    """A packed weight_VD, read by rows at the model's start and as a linear at its end: one storage for both."""

    @property
    def num_bytes(self) -> int:
        """Memory that the packed weight takes."""

    def rows(self, token_ids_T: torch.Tensor, scale: float) -> torch.Tensor:
        """x_TD: those rows times scale, in the model's dtype."""

    def logits(self, x_BD: torch.Tensor, cap: float | None) -> torch.Tensor:
        """logits_BV = softcap(x . weight^T), float32."""


class Backend(Protocol):
    """Each operation as specified by the function of the same name in `gemline_kernels.reference`.

    Tensors are contiguous; activations have the model's dtype, float32 or bfloat16, and pools that one or, with scales,
    float8_e4m3fn. Inside an operation all is float32
    and rounded to the model's dtype where it leaves. A module of such functions is a backend, and so is an object
    with such methods.
    """

    @property
    def name(self) -> str:
        """As options and logs say it."""

    @property
    def device(self) -> torch.device:
        """Where weights, activations and caches have to be. `query_start` and `context_len` are always on the CPU."""

    def __hash__(self) -> int:
        """A backend may be a key: what was found out about one is kept for it."""

    def check_shape(self, dtype: torch.dtype, head_dim: int, block_size: int) -> None:
        """Raises ValueError, which says what is supported, for a model or a block size that it cannot serve."""

    def linear(self, weight_ND: torch.Tensor, bias_N: torch.Tensor | None, quantization: Quantization) -> Linear:
        """Packs a weight. The tensor itself may be kept. ValueError when it is to be quantised and is not finite."""

    def gated(self, gate_FD: torch.Tensor, up_FD: torch.Tensor, activation: str, quantization: Quantization) -> Gated:
        """Packs the weights of a gated MLP's first half."""

    def linear_int4(self, groups_ND: Int4Groups, bias_N: torch.Tensor | None) -> Linear:
        """Packs a weight that was quantised before, as it is where the backend has int4 products."""

    def gated_int4(self, gate_FD: Int4Groups, up_FD: Int4Groups, activation: str) -> Gated:
        """The same of a gated MLP's first half."""

    def embedding(self, weight_VD: torch.Tensor, quantization: Quantization) -> Embedding:
        """Packs an embedding, or a head of its own; "int4" and "fp8" give int8 here."""

    def rms_norm(self, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """Root-mean-square norm times 1 + weight."""

    def add_norm(
        self,
        x_TD: torch.Tensor,
        residual_TD: torch.Tensor,
        post_weight_D: torch.Tensor,
        next_weight_D: torch.Tensor,
        eps: float,
    ) -> Normed:
        """Post-norm, residual add and the next half's pre-norm at once."""

    def rope_write(
        self,
        projected_TMK: torch.Tensor,
        table: RopeTable,
        positions_T: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        slots_T: torch.Tensor,
        num_heads: int,
        scales: Scales = UNSCALED,
    ) -> torch.Tensor:
        """Rotates queries and keys, writes keys and values into the pool; query_THK."""

    def paged_attention(
        self,
        query_THK: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        block_table_BP: torch.Tensor,
        query_start: torch.Tensor,
        context_len: torch.Tensor,
        *,
        window: int | None,
        scale: float,
        cap: float | None,
        scales: Scales = UNSCALED,
    ) -> torch.Tensor:
        """Attention over the cache; out_THK."""

    def layers(self, stack: "Stack") -> "Layers":
        """The stack, whose weights this backend packed, ready to run: its operations in order, or faster to the bit."""

    def decoder(
        self,
        weights: "Weights",
        pools: Sequence["KeysValues"],
        num_rows: int,
        num_blocks: int,
        vocabulary: "Vocabulary | None" = None,
    ) -> "Decoder | None":
        """Rows on the device, of at most `num_blocks` blocks each; None where nothing is gained by them.

        With a `vocabulary` weights and pools are a rank's part. All ranks ask at a time, and are told the same.
        """
