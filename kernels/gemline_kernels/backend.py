"""The operations a backend has to offer; `reference` is the one that defines what each means."""

from typing import Protocol

import torch

from gemline_kernels.reference import Angles


class Backend(Protocol):
    """Each operation as specified by the function of the same name in `gemline_kernels.reference`.

    A module of such functions is a backend, and so is an object with such methods.
    """

    def rms_norm(self, x_TD: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
        """Root-mean-square norm times 1 + weight."""

    def rope_angles(self, positions_T: torch.Tensor, num_dims: int, theta: float, dtype: torch.dtype) -> Angles:
        """Rotation of each position."""

    def rope(self, x_THK: torch.Tensor, angles: Angles) -> torch.Tensor:
        """x rotated."""

    def softcap(self, x: torch.Tensor, cap: float | None) -> torch.Tensor:
        """x bounded smoothly."""

    def geglu(self, gate_TF: torch.Tensor, up_TF: torch.Tensor, activation: str) -> torch.Tensor:
        """The gated activation."""

    def write_kv(
        self,
        keys_TGK: torch.Tensor,
        values_TGK: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        slots_T: torch.Tensor,
    ) -> None:
        """Keys and values into their slots, in place."""

    def paged_attention(
        self,
        query_THK: torch.Tensor,
        keys_NSGK: torch.Tensor,
        values_NSGK: torch.Tensor,
        block_table_BP: torch.Tensor,
        query_start: list[int],
        context_len: list[int],
        *,
        window: int | None,
        scale: float,
        cap: float | None,
    ) -> torch.Tensor:
        """Attention over the cache; out_THK."""
