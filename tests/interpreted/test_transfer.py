"""Packing keys and values for the wire and unpacking them."""

import pytest
import torch
from support.device import DEVICE

from gemline_kernels.gpu.transfer import pack, unpack


def pools(num_groups: int = 4) -> torch.Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 5, 16, num_groups, 32).to(DEVICE, torch.bfloat16)


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 40])
@pytest.mark.parametrize("groups", [range(4), range(1, 3), range(3, 4)])
def test_those_slots_and_heads_arrive_and_no_others_change(num_tokens: int, groups: range) -> None:
    source, slots_T = pools(), torch.randperm(80, device=DEVICE)[:num_tokens]
    packed = pack(source[0], source[1], slots_T, groups, torch.bfloat16)
    chosen = source.flatten(1, 2)[:, slots_T][:, :, groups.start : groups.stop]
    assert packed.equal(chosen)
    target, there_T = torch.full_like(source, torch.nan), torch.randperm(80, device=DEVICE)[:num_tokens]
    unpack(packed, target[0], target[1], there_T, groups)
    expected = torch.full_like(source, torch.nan).flatten(1, 2)
    expected[:, there_T, groups.start : groups.stop] = chosen
    assert target.flatten(1, 2).nan_to_num(7.0).equal(expected.nan_to_num(7.0))


def test_two_halves_of_the_heads_make_the_whole() -> None:
    """From a worker of degree 1 to two of degree 2, and back."""
    source, slots_T = pools(), torch.arange(80, device=DEVICE)
    target = torch.full_like(source, torch.nan)
    for groups in (range(2), range(2, 4)):
        half = torch.empty((2, 5, 16, 2, 32), dtype=torch.bfloat16, device=DEVICE)
        unpack(pack(source[0], source[1], slots_T, groups, torch.bfloat16), half[0], half[1], slots_T, range(2))
        unpack(pack(half[0], half[1], slots_T, range(2), torch.bfloat16), target[0], target[1], slots_T, groups)
    assert target.equal(source)


def test_fp8_on_the_wire_is_rounded_once_and_saturates() -> None:
    source, slots_T = pools(), torch.arange(80, device=DEVICE)
    source[0, 0, 0, 0, 0] = 1e6
    packed = pack(source[0], source[1], slots_T, range(4), torch.float8_e4m3fn, (4.0, 2.0))
    flat = source.flatten(1, 2).float()
    expected = torch.stack((flat[0] * 4.0, flat[1] * 2.0)).clamp(-448, 448).to(torch.float8_e4m3fn)
    assert packed.view(torch.uint8).equal(expected.view(torch.uint8))
    target = torch.empty_like(source)
    unpack(packed, target[0], target[1], slots_T, range(4), (0.25, 0.5))
    back = torch.stack((expected[0].float() * 0.25, expected[1].float() * 0.5)).bfloat16()
    assert target.flatten(1, 2).equal(back)
