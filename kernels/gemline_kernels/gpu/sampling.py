"""One token for each row of logits, on the device: nothing is read back but the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import triton

from gemline_kernels.decoding import Choice
from gemline_kernels.gpu.chunks import Chunks
from gemline_kernels.gpu.device import sampling as device
from gemline_kernels.gpu.support import upload
from gemline_kernels.vocabulary import Vocabulary

_CHUNK = 4096
_SHIFTS = (24, 16, 8, 0)


@dataclass(frozen=True, slots=True)
class Choices:
    """How the token of each of B rows is chosen, as tensors on the logits' device."""

    temperature: torch.Tensor  # float32; 0: the likeliest
    top_k: torch.Tensor  # int32; 0: all
    top_p: torch.Tensor  # float32; 1: all
    min_p: torch.Tensor  # float32; 0: all
    seed: torch.Tensor  # int64, the bits of an unsigned one
    position: torch.Tensor  # int64, of the token in its sequence

    @classmethod
    def of(cls, choices: Sequence[Choice], device: torch.device) -> Self:
        """From the host's."""

        def column(name: str, dtype: torch.dtype) -> torch.Tensor:
            return upload([getattr(choice, name) for choice in choices], dtype, device)

        return cls(
            temperature=column("temperature", torch.float32),
            top_k=column("top_k", torch.int32),
            top_p=column("top_p", torch.float32),
            min_p=column("min_p", torch.float32),
            seed=upload([_signed(choice.seed) for choice in choices], torch.int64, device),
            position=column("position", torch.int64),
        )


def sample(
    logits_BV: torch.Tensor,
    choices: Choices,
    *,
    truncates: bool,
    vocabulary: Vocabulary | None = None,
    chunk: int = _CHUNK,
) -> torch.Tensor:
    """token_ids_B, int32: -1 for a row whose maximum is no finite number.

    Logits are float32 and stay as they are. min_p, then top_k, then top_p leave the likeliest tokens; of equal ones at
    the edge those of lower id. `truncates` is whether any row has a top_k or a top_p.

    With a `vocabulary` the logits are of a rank's own tokens. All ranks call at a time and get the tokens that one
    device would choose from whole rows, bit for bit. What crosses are two numbers of each chunk, three more once what
    is cut off is known, one token of a row, and in between, where rows are cut off, eight histograms of 256 bins.
    """
    num_rows, vocab_size = logits_BV.shape
    chunks = Chunks.of(vocab_size, chunk, vocabulary)
    grid, sizes = (num_rows, chunks.num_own), {"CHUNK": chunk, "CHUNKS": triton.next_power_of_2(chunks.num)}

    def rows(dtype: torch.dtype, *shape: int) -> torch.Tensor:
        return torch.empty((*shape[:-1], num_rows, *shape[-1:]), dtype=dtype, device=logits_BV.device)

    best = rows(torch.int32, 2, chunks.num_own)  # the bits of the largest logits, and their tokens
    row_max, row_token, is_active = rows(torch.float32), rows(torch.int32), rows(torch.int32)
    edge, keep, need, mass = (rows(torch.int64) for _ in range(4))
    device.survey[grid](logits_BV, best[0].view(torch.float32), best[1], chunks.first_token, vocab_size, CHUNK=chunk)
    chunk_max, chunk_token = chunks.all_of(best)
    device.begin[(num_rows,)](
        chunk_max.view(torch.float32), chunk_token, row_max, row_token, edge, keep, need, mass, is_active,
        choices.top_k, choices.top_p, chunks.num, CHUNKS=sizes["CHUNKS"],
    )  # fmt: skip
    weighing = (logits_BV, row_max, choices.temperature, choices.min_p)
    if truncates:
        bins = torch.zeros((2, num_rows, 256), dtype=torch.int64, device=logits_BV.device)  # counts and masses
        for by_mass in (False, True):
            if by_mass:
                device.turn_to_mass[(num_rows,)](
                    edge, keep, need, mass, is_active, row_token, choices.top_p
                )  # fmt: skip
            for shift in _SHIFTS:
                device.count[grid](*weighing, edge, is_active, *bins, vocab_size, SHIFT=shift, CHUNK=chunk)
                chunks.sum_(bins)
                device.narrow[(num_rows,)](
                    edge, keep, need, mass, is_active, choices.top_k, *bins, SHIFT=shift, BY_MASS=by_mass
                )
    beyond = rows(torch.int64, 3, chunks.num_own)  # mass beyond the edge, tokens at it, the weight of one of these
    device.total[grid](*weighing, edge, *beyond, vocab_size, CHUNK=chunk)
    out = rows(torch.int32)
    device.draw[(num_rows,)](
        logits_BV, row_max, row_token, choices.temperature, choices.min_p, edge, keep, *chunks.all_of(beyond),
        choices.seed, choices.position, out, chunks.num, chunks.first, chunks.num_own, chunks.first_token, vocab_size,
        **sizes,
    )  # fmt: skip
    chunks.sum_(out)
    return out


def _signed(number: int) -> int:
    """The same 64 bits."""
    return number - 2**64 if number >= 2**63 else number
