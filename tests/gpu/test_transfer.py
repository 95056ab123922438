"""Packing and unpacking a long sequence of the published models for the wire."""

import pytest
import torch
from support.device import DEVICE
from support.published import MODELS, Model

from gemline_kernels.gpu.transfer import pack, unpack

BLOCK_SIZE = 64
FACTORS, BACK = (4.0, 2.0), (0.25, 0.5)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("wire", [torch.bfloat16, torch.float8_e4m3fn], ids=["bf16", "fp8"])
def test_a_windows_slots_arrive_on_every_rank(model: Model, wire: torch.dtype) -> None:
    """From one rank to two with half of the heads each."""
    torch.manual_seed(0)
    num_blocks, half = model.window // BLOCK_SIZE + 2, model.num_groups // 2
    source = torch.randn(2, num_blocks, BLOCK_SIZE, model.num_groups, model.head_dim, device=DEVICE).bfloat16()
    slots_T, there_T = (torch.randperm(num_blocks * BLOCK_SIZE, device=DEVICE)[: model.window] for _ in range(2))
    factors, back = (FACTORS, BACK) if wire.itemsize == 1 else ((1.0, 1.0), (1.0, 1.0))
    for groups in (range(half), range(half, model.num_groups)):
        packed = pack(source[0], source[1], slots_T, groups, wire, factors)
        chosen = source.flatten(1, 2)[:, slots_T, groups.start : groups.stop].float()
        scaled = torch.stack([part * factor for part, factor in zip(chosen, factors, strict=True)])
        assert packed.float().equal(scaled.clamp(-448, 448).to(wire).float())
        target = torch.full_like(source[:, :, :, :half], torch.nan)
        unpack(packed, target[0], target[1], there_T, range(half), back)
        arrived = torch.stack([part * factor for part, factor in zip(packed.float(), back, strict=True)]).bfloat16()
        assert target.flatten(1, 2)[:, there_T].equal(arrived)
        assert target.isnan().sum() == target.numel() - arrived.numel()
