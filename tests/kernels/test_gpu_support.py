"""What no GPU kernel was written for is refused by name."""

import pytest
import torch

from gemline_kernels.gpu.support import check_shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("head_dim", [128, 256])
@pytest.mark.parametrize("block_size", [16, 48, 64])
def test_the_published_models_are_supported(dtype: torch.dtype, head_dim: int, block_size: int) -> None:
    check_shape(dtype, head_dim, block_size)


@pytest.mark.parametrize(
    ("dtype", "head_dim", "block_size", "message"),
    [
        (torch.float16, 128, 16, "dtype float16 .* must be bfloat16 or float32"),
        (torch.bfloat16, 96, 16, "head_dim 96 .* must be 16, 32, 64, 128 or 256"),
        (torch.bfloat16, 128, 8, "block size 8 .* multiple of 16"),
        (torch.bfloat16, 128, 0, "block size 0 .* multiple of 16"),
    ],
)
def test_what_is_not_supported_is_named_with_what_is(
    dtype: torch.dtype, head_dim: int, block_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_shape(dtype, head_dim, block_size)
