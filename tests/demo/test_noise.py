"""Noise that must not change with the machine, and its rounding."""

import math

import torch
from support.noise_model.noise import to_bfloat16, uniform


def test_the_stream_of_a_name_is_known() -> None:
    expected = [0.36846667528152466, 0.8657111525535583, -1.0937690734863281]
    assert uniform(0, "embedding", (3,), rms=1.0).tolist() == expected


def test_values_have_the_width_asked_for_and_no_offset() -> None:
    values = torch.from_numpy(uniform(7, "x", (100, 200), rms=0.3))
    assert math.isclose(values.square().mean().sqrt(), 0.3, rel_tol=0.02)
    assert abs(values.mean()) < 0.01
    assert values.abs().max() <= 0.3 * math.sqrt(3)


def test_names_and_seeds_have_streams_of_their_own() -> None:
    streams = [uniform(seed, name, (4,), 1.0).tolist() for seed in (0, 1) for name in ("x", "y")]
    assert len({tuple(stream) for stream in streams}) == 4


def test_bfloat16_is_rounded_as_torch_does() -> None:
    values = uniform(0, "x", (10_000,), 100.0)
    values[:4] = [0.0, 1.00390625, 1.01171875, -1.00390625]  # the last three lie half way
    rounded = torch.frombuffer(bytearray(to_bfloat16(values)), dtype=torch.bfloat16)
    assert rounded.equal(torch.from_numpy(values).bfloat16())
