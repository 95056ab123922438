"""Safetensors directories, whole and damaged: what is wrong is refused by file and tensor, before it is used."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from gemline.engine.checkpoint import revision
from gemline.engine.config import Gemma2Config
from gemline.engine.manifest import verify_manifest, write_manifest
from gemline.engine.model import Gemma2Model
from gemline.engine.weights import Weights, load_weights
from gemline.errors import CheckpointError, ConfigurationError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEAD, NORM = "lm_head.weight", "model.norm.weight"
CONFIG: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
}


def make_tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(shape) for name, shape in Gemma2Config(**CONFIG).parameter_shapes().items()}


def write(directory: Path, tensors: dict[str, torch.Tensor], num_shards: int = 1, **values: Any) -> Path:
    (directory / "config.json").write_text(json.dumps(CONFIG | values))
    if num_shards == 1:
        save_file(tensors, directory / SINGLE)
        return directory
    weight_map = {name: f"model-{index % num_shards}.safetensors" for index, name in enumerate(sorted(tensors))}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in weight_map if weight_map[name] == shard}, directory / shard)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def load(directory: Path) -> Weights:
    return load_weights(directory, Gemma2Config.load(directory))


def refused(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        load(directory)
    return caught.value.message


def raw_file(directory: Path, header: bytes, payload: bytes = b"", length: int | None = None) -> Path:
    (directory / "config.json").write_text(json.dumps(CONFIG))
    (directory / SINGLE).write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + payload)
    return directory


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_loaded_as_they_were_saved(tmp_path: Path, num_shards: int, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in make_tensors().items()}
    loaded = load(write(tmp_path, tensors, num_shards))
    assert loaded.keys() == tensors.keys()
    assert all(loaded[name].dtype == dtype and loaded[name].equal(tensors[name]) for name in tensors)


def test_tensors_that_are_not_aligned_are_loaded_too(tmp_path: Path) -> None:
    """Hugging Face pads the header; a file without padding is legal all the same."""
    tensors, start, header = make_tensors(), 0, {}
    for name, tensor in tensors.items():
        stop = start + tensor.numel() * 4
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header).encode()
    text += b" " * (1 - len(text) % 2)
    raw_file(tmp_path, text, b"".join(tensor.numpy().tobytes() for tensor in tensors.values()))
    assert len(text) % 2 == 1
    assert all(tensor.equal(tensors[name]) for name, tensor in load(tmp_path).items())


def test_a_tied_head_may_be_stored_but_not_in_another_shape(tmp_path: Path) -> None:
    assert HEAD in load(write(tmp_path, make_tensors() | {HEAD: torch.zeros(11, 8)}))
    message = refused(write(tmp_path, make_tensors() | {HEAD: torch.zeros(11, 9)}))
    assert "lm_head.weight: has shape (11, 9), but config.json asks for (11, 8)" in message


def test_an_untied_head_must_be_there(tmp_path: Path) -> None:
    message = refused(write(tmp_path, make_tensors(), tie_word_embeddings=False))
    assert "1 of 25 tensors are missing, the first is lm_head.weight (11, 8) (looked in model.safetensors)" in message


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    tensors = make_tensors()
    del tensors["model.layers.1.mlp.up_proj.weight"]
    for num_shards in (1, 3):
        assert "model.layers.1.mlp.up_proj.weight (12, 8)" in refused(write(tmp_path, tensors, num_shards))


def test_an_unknown_tensor_is_named(tmp_path: Path) -> None:
    message = refused(write(tmp_path, make_tensors() | {"model.layers.2.mlp.up_proj.weight": torch.zeros(12, 8)}))
    assert f"{tmp_path / SINGLE}: tensor 'model.layers.2.mlp.up_proj.weight': not part of the model" in message


def test_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path) -> None:
    message = refused(write(tmp_path, make_tensors() | {NORM: torch.zeros(9)}))
    assert f"{tmp_path / SINGLE}: tensor {NORM}: has shape (9,), but config.json asks for (8,)" in message


def test_a_directory_without_weights_is_named(tmp_path: Path) -> None:
    write(tmp_path, make_tensors())
    (tmp_path / SINGLE).unlink()
    assert refused(tmp_path) == f"{tmp_path}: holds neither {SINGLE} nor {INDEX}"


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    write(tmp_path, make_tensors(), 3)
    (tmp_path / "model-1.safetensors").unlink()
    assert f"{tmp_path / 'model-1.safetensors'}: cannot be read" in refused(tmp_path)


@pytest.mark.parametrize("file", ["../model-0.safetensors", "/etc/passwd", "model-0.bin", "", 7, None, ["a"]])
def test_an_index_that_names_no_plain_file_is_refused(tmp_path: Path, file: object) -> None:
    write(tmp_path, make_tensors(), 3)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {NORM: file}}))
    assert "is not a safetensors file name" in refused(tmp_path)


def test_an_index_must_agree_with_its_shards(tmp_path: Path) -> None:
    write(tmp_path, make_tensors(), 2)
    index = json.loads((tmp_path / INDEX).read_text())
    home = index["weight_map"][NORM]
    away = next(file for file in index["weight_map"].values() if file != home)
    index["weight_map"][NORM] = away
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert f"tensor '{NORM}': said to be in {away}, is in {home}" in refused(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}'])
def test_a_broken_index_is_named(tmp_path: Path, content: str) -> None:
    write(tmp_path, make_tensors(), 2)
    (tmp_path / INDEX).write_text(content)
    assert str(tmp_path / INDEX) in refused(tmp_path)


def entry(dtype: object = "F32", shape: object = (8,), offsets: object = (0, 32)) -> bytes:
    return json.dumps({NORM: {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()


@pytest.mark.parametrize(
    ("header", "payload", "said"),
    [
        (b"{", b"", "the header is not valid JSON"),
        (b"\xff\xff", b"", "the header is not valid JSON"),
        (b"[" * 100_000, b"", "the header is not valid JSON"),
        (b"[]", b"", "must be a JSON object, not list"),
        (b'{"a": {}, "a": {}}', b"", "key 'a' occurs twice"),
        (b'{"a": 7}', b"", "tensor 'a': needs dtype, shape and data_offsets"),
        (entry(offsets=[0]), b"", "needs dtype, shape and data_offsets"),
        (entry(dtype=None), b"", "needs dtype, shape and data_offsets"),
        (entry(dtype="F64"), bytes(64), "stored as 'F64', must be one of F32, BF16, F16, I64, I32, I8, F8_E4M3"),
        (entry(shape=[-8]), bytes(32), "must be small lists of sizes"),
        (entry(shape=[8.0]), bytes(32), "must be small lists of sizes"),
        (entry(shape=[True]), bytes(32), "must be small lists of sizes"),
        (entry(shape=[1] * 99), bytes(32), "must be small lists of sizes"),
        (entry(shape=[2**62, 4]), bytes(32), "must be small lists of sizes"),
        (entry(offsets=[0, 28]), bytes(28), "hold 28 bytes, but F32 of shape [8] takes 32"),
        (entry(offsets=[32, 0]), bytes(32), "hold -32 bytes"),
        (entry(offsets=[4, 36]), bytes(36), "the tensors take the bytes"),
        (entry(), bytes(31), "the tensors take the bytes"),
        (entry(), bytes(33), "the tensors take the bytes"),
        (b"{}", b"\0", "the tensors take the bytes"),
        (b"{}", b"", "24 of 24 tensors are missing"),
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, header: bytes, payload: bytes, said: str) -> None:
    message = refused(raw_file(tmp_path, header, payload))
    assert said in message
    assert str(tmp_path) in message
    assert len(message) < 1000


@pytest.mark.parametrize("second", [(32, 64), (16, 48), (40, 72)])
def test_tensors_must_follow_each_other_without_gap_or_overlap(tmp_path: Path, second: tuple[int, int]) -> None:
    header = json.loads(entry()) | {"model.extra": {"dtype": "F32", "shape": [8], "data_offsets": second}}
    message = refused(raw_file(tmp_path, json.dumps(header).encode(), bytes(second[1])))
    assert ("before it stops at" in message) is (second[0] != 32)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "0 bytes, too short"),
        (b"\0" * 7, "7 bytes, too short"),
        (struct.pack("<Q", 100) + b"{}", "the header claims 100 bytes, but the file has 10"),
        (struct.pack("<Q", 2**63), "more than the 33554432 allowed"),
    ],
)
def test_a_wrong_header_length_is_refused_before_it_is_read(tmp_path: Path, content: bytes, said: str) -> None:
    write(tmp_path, make_tensors())
    (tmp_path / SINGLE).write_bytes(content)
    assert said in refused(tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 4000), flips=st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 255)), max_size=4))
def test_any_damage_gives_tensors_of_the_right_shape_or_a_clear_error(
    tmp_path: Path, cut: int, flips: list[tuple[int, int]]
) -> None:
    """Flipped bits of a weight cannot be seen without SHA256SUMS; they must do no other harm."""
    content = bytearray((write(tmp_path, make_tensors()) / SINGLE).read_bytes())
    for offset, mask in flips:
        content[offset] ^= mask
    (tmp_path / SINGLE).write_bytes(content[: len(content) - max(0, cut - 2000)])
    shapes = Gemma2Config.load(tmp_path).parameter_shapes()
    try:
        loaded = load(tmp_path)
    except CheckpointError as error:
        assert str(tmp_path) in error.message
    else:
        assert {name: tuple(tensor.shape) for name, tensor in loaded.items()} == shapes


def test_a_flipped_bit_is_found_where_there_is_a_manifest(tmp_path: Path) -> None:
    write(tmp_path, make_tensors())
    write_manifest(tmp_path, ["config.json", SINGLE])
    load(tmp_path)
    content = bytearray((tmp_path / SINGLE).read_bytes())
    content[-1] ^= 1
    (tmp_path / SINGLE).write_bytes(content)
    assert f"{tmp_path / SINGLE}: SHA-256 is " in refused(tmp_path)


@pytest.mark.parametrize("line", ["abc  config.json", f"{'0' * 64}  ../config.json", f"{'0' * 64}", "\xff\xfe"])
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, line: str) -> None:
    (tmp_path / "SHA256SUMS").write_text(line)
    with pytest.raises(CheckpointError, match="is not a SHA-256 and a file name"):
        verify_manifest(tmp_path)


def test_a_file_that_the_manifest_names_must_be_there(tmp_path: Path) -> None:
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  gone.json\n")
    with pytest.raises(CheckpointError, match=r"gone\.json: cannot be read"):
        verify_manifest(tmp_path)


def test_the_revision_is_the_same_for_a_copy(tmp_path: Path) -> None:
    for directory in ("one", "two"):
        (tmp_path / directory).mkdir()
        write(tmp_path / directory, make_tensors(), 3)
    assert revision(tmp_path / "one") == revision(tmp_path / "two")
    assert len(bytes.fromhex(revision(tmp_path / "one"))) == 32


@pytest.mark.parametrize(
    "change",
    [
        lambda directory: (directory / "config.json").write_text(json.dumps(CONFIG | {"rms_norm_eps": 1e-5})),
        lambda directory: write(directory, make_tensors() | {NORM: torch.zeros(8)}),
        lambda directory: write(directory, {name: t.bfloat16() for name, t in make_tensors().items()}),
        lambda directory: write(directory, make_tensors() | {HEAD: torch.zeros(11, 8)}),
    ],
)
def test_the_revision_changes_with_the_config_and_the_weights(tmp_path: Path, change: Callable[[Path], object]) -> None:
    before = revision(write(tmp_path, make_tensors()))
    change(tmp_path)
    assert revision(tmp_path) != before


def test_a_float16_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    weights = load(write(tmp_path, make_tensors()))
    with pytest.raises(ConfigurationError, match=r"float32 or bfloat16, is float16.*overflow"):
        Gemma2Model(Gemma2Config.load(tmp_path), weights, torch.float16)


def test_float16_weights_are_computed_in_another_dtype(tmp_path: Path) -> None:
    write(tmp_path, {name: tensor.half() for name, tensor in make_tensors().items()})
    assert Gemma2Model(Gemma2Config.load(tmp_path), load(tmp_path), torch.bfloat16).dtype == torch.bfloat16


def test_a_copy_through_links_is_read(tmp_path: Path) -> None:
    """The hub's cache holds links to files of other names."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "snapshot").mkdir()
    for index, path in enumerate(sorted(write(tmp_path / "blobs", make_tensors(), 2).iterdir())):
        blob = shutil.move(path, tmp_path / "blobs" / f"blob{index}")
        (tmp_path / "snapshot" / path.name).symlink_to(blob)
    assert load(tmp_path / "snapshot").keys() == make_tensors().keys()
