"""Choosing a token for each row of logits, in numbers of times that the logits could have been copied."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from bench.gpu.bench import Bench, Case
from bench.gpu.report import Row

from gemline_kernels.gpu.sampling import Choices, sample


def sampling(bench: Bench) -> Iterator[Case]:
    """From all tokens, and from those that top_k and top_p leave."""
    for num_rows, truncates in product(bench.sizes.sampled_rows, (False, True)):
        yield Case(f"{num_rows} rows{' top_k top_p' * truncates}", partial(measure, bench, num_rows, truncates))


def measure(bench: Bench, num_rows: int, truncates: bool) -> Row:
    """Logits as after the cap."""

    def column(value: float, dtype: torch.dtype) -> torch.Tensor:
        return torch.full((num_rows,), value, dtype=dtype, device=bench.device)

    choices = Choices(
        temperature=column(1.0, torch.float32),
        top_k=column(64 * truncates, torch.int32),
        top_p=column(0.95 if truncates else 1.0, torch.float32),
        min_p=column(0.0, torch.float32),
        seed=torch.arange(num_rows, device=bench.device),
        position=column(100, torch.int64),
    )
    shape = (num_rows, bench.sizes.models[0].vocab_size)
    num_sets = bench.num_sets(4 * shape[0] * shape[1])
    sets = [30 * torch.tanh(torch.randn(shape, device=bench.device) / 5) for _ in range(num_sets)]
    seconds = bench.clock.seconds([partial(sample, logits_BV, choices, truncates=truncates) for logits_BV in sets])
    reads = seconds * bench.bytes_per_s / sets[0].nbytes
    return Row(f"{num_rows} rows{' top_k top_p' * truncates}", seconds, {"reads_of_the_logits": reads})
