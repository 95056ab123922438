"""What the device can do at most: the measure of all other figures."""

from collections.abc import Iterator

import torch
from bench.gpu.bench import Bench, Case
from bench.gpu.report import Row


def peaks(bench: Bench) -> Iterator[Case]:
    """A large copy and a large product."""
    yield Case("copy", lambda: copy(bench))
    yield Case("product", lambda: product(bench))


def copy(bench: Bench) -> Row:
    """Bytes read and bytes written both count."""
    number = bench.sizes.copied_bytes
    source = torch.randint(0, 256, (number,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.clock.seconds([lambda: target.copy_(source)])
    rate = 2 * number / seconds
    return Row("copy", seconds, {"bytes_per_s": rate, "of_datasheet": rate / bench.datasheet.bytes_per_s})


def product(bench: Bench) -> Row:
    """Of random bfloat16 matrices: of zeros it would be faster."""
    size = bench.sizes.product_size
    left, right = (torch.randn(size, size, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    seconds = bench.clock.seconds([lambda: left @ right])
    rate = 2 * size**3 / seconds
    return Row("product", seconds, {"flops_per_s": rate, "of_datasheet": rate / bench.datasheet.flops_per_s})
