"""Tensors are the mapped file, one at a time, and none that cannot be quantized gets through."""

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gemline.engine.options import Quantization
from gemline.engine.tensor_file import TensorFile
from gemline.engine.weights import Weights
from gemline.errors import CheckpointError

LARGE, SMALL = "model.embed_tokens.weight", "model.norm.weight"


def write(directory: Path, **changes: torch.Tensor) -> Path:
    path = directory / "model.safetensors"
    tensors = {LARGE: torch.arange(2**20).view(1024, 1024).bfloat16(), SMALL: torch.arange(8.0)}
    save_file(tensors | {name.replace("__", "."): tensor for name, tensor in changes.items()}, path)
    return path


def weights(path: Path, quantization: Quantization = "none") -> Weights:
    return Weights((TensorFile.open(path),), quantization)


def mapped_bytes(path: Path) -> int:
    """How much of the file this process has mapped."""
    lines = [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(str(path))]
    ends = (line.split()[0].split("-") for line in lines)
    return sum(int(stop, 16) - int(start, 16) for start, stop in ends)


def test_every_tensor_is_read_as_it_was_saved(tmp_path: Path) -> None:
    path = write(tmp_path)
    saved = load_file(path)
    read = dict(weights(path))
    assert read.keys() == saved.keys()
    assert all(read[name].dtype == saved[name].dtype and read[name].equal(saved[name]) for name in saved)


def test_a_large_tensor_is_the_mapped_file_and_is_let_go_with_its_last_view(tmp_path: Path) -> None:
    path = write(tmp_path)
    opened = weights(path)
    assert mapped_bytes(path) == 0
    row = opened[LARGE][3]
    assert 2**21 <= mapped_bytes(path) < 2**21 + 2**17
    assert row[:3].tolist() == torch.arange(3072.0, 3075).bfloat16().tolist()
    del row
    gc.collect()
    assert mapped_bytes(path) == 0


def test_a_small_tensor_holds_no_mapping(tmp_path: Path) -> None:
    path = write(tmp_path)
    kept = weights(path)[SMALL]
    gc.collect()
    assert mapped_bytes(path) == 0
    assert kept.tolist() == list(range(8))


def test_changing_a_tensor_changes_neither_the_file_nor_what_is_read_next(tmp_path: Path) -> None:
    path = write(tmp_path)
    saved, opened = load_file(path), weights(path)
    for name in saved:
        opened[name].zero_()
        assert opened[name].equal(saved[name])
        assert load_file(path)[name].equal(saved[name])


@pytest.mark.parametrize("quantization", ["int8", "int4", "fp8"])
def test_what_cannot_be_quantized_is_named_with_the_number_of_its_values(
    tmp_path: Path, quantization: Quantization
) -> None:
    spoilt = torch.ones(4, 4)
    spoilt[1, 2], spoilt[3, 0] = torch.nan, -torch.inf
    path = write(tmp_path, model__layers__3__mlp__up_proj__weight=spoilt)
    opened = weights(path, quantization=quantization)
    with pytest.raises(CheckpointError) as caught:
        opened["model.layers.3.mlp.up_proj.weight"]
    assert caught.value.message == (
        "model.layers.3.mlp.up_proj.weight: 2 values are not finite (NaN or Inf),"
        f" so it cannot be quantized to {quantization}"
    )
    assert opened[SMALL].isfinite().all()


def test_large_finite_values_whose_sum_overflows_are_no_fault(tmp_path: Path) -> None:
    path = write(tmp_path, model__norm__weight=torch.full((8,), 3e38))
    assert weights(path, quantization="int8")[SMALL].isfinite().all()


def test_without_quantization_the_values_are_nobodys_business(tmp_path: Path) -> None:
    path = write(tmp_path, model__norm__weight=torch.full((8,), torch.nan))
    assert weights(path)[SMALL].isnan().all()


def test_the_dtypes_that_occur_are_told_without_reading(tmp_path: Path) -> None:
    assert weights(write(tmp_path)).stored_dtypes == {torch.bfloat16, torch.float32}


def test_a_file_that_has_become_shorter_is_named(tmp_path: Path) -> None:
    path = write(tmp_path)
    opened = weights(path)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(CheckpointError, match=str(path)):
        opened[LARGE]
