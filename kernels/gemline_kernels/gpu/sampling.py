"""One token for each row of logits, on the device: nothing is read back but the tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
import triton

from gemline_kernels.decoding import Choice
from gemline_kernels.gpu.device import sampling as device
from gemline_kernels.gpu.support import upload

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


def sample(logits_BV: torch.Tensor, choices: Choices, *, truncates: bool, chunk: int = _CHUNK) -> torch.Tensor:
    """token_ids_B, int32: -1 for a row whose maximum is no finite number.

    Logits are float32 and stay as they are. min_p, then top_k, then top_p leave the likeliest tokens; of equal ones at
    the edge those of lower id. `truncates` is whether any row has a top_k or a top_p.
    """
    num_rows, vocab_size = logits_BV.shape
    num_chunks = triton.cdiv(vocab_size, chunk)
    chunks = triton.next_power_of_2(num_chunks)
    grid = (num_rows, num_chunks)

    def rows(dtype: torch.dtype, *sizes: int) -> torch.Tensor:
        return torch.empty((num_rows, *sizes), dtype=dtype, device=logits_BV.device)

    chunk_max, chunk_token = rows(torch.float32, num_chunks), rows(torch.int32, num_chunks)
    row_max, row_token, is_active = rows(torch.float32), rows(torch.int32), rows(torch.int32)
    edge, keep, need, mass = (rows(torch.int64) for _ in range(4))
    device.survey[grid](logits_BV, chunk_max, chunk_token, vocab_size, CHUNK=chunk)
    device.begin[(num_rows,)](
        chunk_max, chunk_token, row_max, row_token, edge, keep, need, mass, is_active, choices.top_k, choices.top_p,
        num_chunks, CHUNKS=chunks,
    )  # fmt: skip
    weighing = (logits_BV, row_max, choices.temperature, choices.min_p)
    if truncates:
        counts, masses = torch.zeros((2, num_rows, 256), dtype=torch.int64, device=logits_BV.device)
        for by_mass in (False, True):
            if by_mass:
                device.turn_to_mass[(num_rows,)](
                    edge, keep, need, mass, is_active, row_token, choices.top_p
                )  # fmt: skip
            for shift in _SHIFTS:
                device.count[grid](*weighing, edge, is_active, counts, masses, vocab_size, SHIFT=shift, CHUNK=chunk)
                device.narrow[(num_rows,)](
                    edge, keep, need, mass, is_active, choices.top_k, counts, masses, SHIFT=shift, BY_MASS=by_mass
                )
    chunk_mass, chunk_equal, chunk_one = (rows(torch.int64, num_chunks) for _ in range(3))
    device.total[grid](*weighing, edge, chunk_mass, chunk_equal, chunk_one, vocab_size, CHUNK=chunk)
    out = rows(torch.int32)
    device.draw[(num_rows,)](
        logits_BV, row_max, row_token, choices.temperature, choices.min_p, edge, keep, chunk_mass, chunk_equal,
        chunk_one, choices.seed, choices.position, out, num_chunks, vocab_size, CHUNK=chunk, CHUNKS=chunks,
    )  # fmt: skip
    return out


def _signed(number: int) -> int:
    """The same 64 bits."""
    return number - 2**64 if number >= 2**63 else number
