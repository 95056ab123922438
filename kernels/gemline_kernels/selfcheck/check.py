"""All of a backend's operations at once."""

import torch

from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.selfcheck.attention import check_attention
from gemline_kernels.selfcheck.layers import check_layers
from gemline_kernels.selfcheck.linear import check_linear
from gemline_kernels.selfcheck.pointwise import check_pointwise


@torch.inference_mode()
def check(
    backend: Backend,
    dtype: torch.dtype,
    quantization: Quantization,
    *,
    scale: float,
    cap: float | None,
    window: int | None,
    head_dim: int,
) -> None:
    """Compares every operation with float64 on small inputs, with the constants of the model that is to be served.

    What the backend is given lies on its device; what is exact is computed on the CPU. Takes under half a second, and
    what it takes to compile kernels. Raises SelfCheckFailedError, which names the operation, the case, the error and
    its bound.
    """
    check_pointwise(backend, dtype, head_dim)
    check_attention(backend, dtype, scale=scale, cap=cap, window=window, head_dim=head_dim)
    check_linear(backend, dtype, quantization)
    check_layers(backend, dtype, quantization, scale=scale, cap=cap, head_dim=head_dim)
