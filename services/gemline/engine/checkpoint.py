"""A checkpoint directory of safetensors files: found, checked against the config, hashed. Knows no torch."""

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from gemline.engine.config import Gemma2Config
from gemline.engine.json_fields import JsonFields, read_json_object
from gemline.engine.layout import FLOATS, ONE_NUMBER, Allowed, Layout
from gemline.engine.manifest import verify_manifest
from gemline.engine.tensor_file import TensorEntry, TensorFile
from gemline.errors import CheckpointError

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_HEAD = "lm_head.weight"
_EMBEDDING = "model.embed_tokens.weight"
_SAMPLE_BYTES = 64


class Packed(NamedTuple):
    """A matrix that is stored quantised."""

    layout: Layout
    shape: tuple[int, int]


def packed_matrices(config: Gemma2Config, stored: Collection[str]) -> dict[str, Packed]:
    """Which of the model's tensors are quantised, by the names of those that a checkpoint holds."""
    layout, shapes = config.layout, config.parameter_shapes()
    if layout is None:
        return {}
    return {
        name: Packed(layout, (shape[0], shape[1]))
        for name, shape in shapes.items()
        if len(shape) == 2 and name != _EMBEDDING and layout.marker(name) in stored
    }


class KvScaleNames(NamedTuple):
    """The tensors that say what one layer's keys and values in fp8 are to be multiplied by."""

    keys: str
    values: str


def kv_scale_names(config: Gemma2Config) -> tuple[KvScaleNames, ...]:
    """Of each layer; empty where a checkpoint has none."""
    if not config.has_kv_scales:
        return ()
    modules = [f"model.layers.{layer}.self_attn" for layer in range(config.num_hidden_layers)]
    return tuple(KvScaleNames(f"{module}.k_scale", f"{module}.v_scale") for module in modules)


def open_checkpoint(model_dir: Path, config: Gemma2Config) -> tuple[TensorFile, ...]:
    """The files that hold the tensors, none of which has been read yet.

    Raises CheckpointError when a file is damaged or hostile, when SHA256SUMS is there and a file differs from it, and
    when a tensor is missing, unknown or of another type or shape than the config says.
    """
    files = _open_files(model_dir)
    _verify(files, config)
    verify_manifest(model_dir)
    return tuple(files)


def revision(model_dir: Path) -> str:
    """SHA-256, hex, over config.json, the tensor headers and the first bytes of each tensor.

    Two fine-tunes of one model have equal headers, so bytes of the tensors are needed to tell them apart; hashing all
    of them would take longer than loading.
    """
    digest = hashlib.sha256()
    parts = [_read(model_dir / "config.json")]
    for file in _open_files(model_dir):
        parts += [file.path.name.encode(), file.header, file.sample(_SAMPLE_BYTES)]
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from error


def _open_files(model_dir: Path) -> list[TensorFile]:
    """The one file, or the shards that the index names; the index and the shards must agree on every tensor."""
    if (model_dir / _SINGLE).exists():
        return [TensorFile.open(model_dir / _SINGLE)]
    if not (model_dir / _INDEX).exists():
        raise CheckpointError(f"{model_dir}: holds neither {_SINGLE} nor {_INDEX}")
    weight_map = _weight_map(model_dir / _INDEX)
    files = [TensorFile.open(model_dir / name) for name in sorted(set(weight_map.values()))]
    found = {entry.name: file.path.name for file in files for entry in file.entries}
    if sum(len(file.entries) for file in files) != len(found):
        raise CheckpointError(f"{model_dir / _INDEX}: a tensor is in more than one of its files")
    for name in sorted(weight_map.keys() | found.keys()):
        said, actual = weight_map.get(name), found.get(name)
        if said != actual:
            raise CheckpointError(f"{model_dir / _INDEX}: tensor {name!r:.200}: said to be in {said}, is in {actual}")
    return files


def _weight_map(path: Path) -> dict[str, str]:
    weight_map = JsonFields(path, read_json_object(path)).section("weight_map").as_dict()
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise CheckpointError(f"{path}: weight_map: {name!r:.200}: {file!r:.200} is not a safetensors file name")
    if not weight_map:
        raise CheckpointError(f"{path}: weight_map: names no tensor")
    return weight_map


def _verify(files: list[TensorFile], config: Gemma2Config) -> None:
    stored = {entry.name for file in files for entry in file.entries}
    allowed = _allowed(config, stored)
    expected = {name for name, tensor in allowed.items() if not tensor.is_optional}
    if missing := expected - stored:
        names = ", ".join(file.path.name for file in files[:4])
        raise CheckpointError(
            f"{files[0].path.parent}: {len(missing)} of {len(expected)} tensors are missing, "
            f"the first is {min(missing)} {_shown(allowed[min(missing)].shapes)} (looked in {names})"
        )
    for file in files:
        for entry in file.entries:
            if entry.name not in allowed:
                raise CheckpointError(f"{file.path}: tensor {entry.name!r:.200}: not part of the model of config.json")
            _verify_tensor(file, entry, allowed[entry.name])


def _allowed(config: Gemma2Config, stored: Collection[str]) -> dict[str, Allowed]:
    """Every tensor that there may be."""
    packed = packed_matrices(config, stored)
    allowed = {_HEAD: Allowed(FLOATS, ((config.vocab_size, config.hidden_size),), is_optional=True)}
    # A tied head may be stored all the same; it is not read, but a wrong one means a wrong file.
    for name, shape in config.parameter_shapes().items():
        if name not in packed:
            allowed[name] = Allowed(FLOATS, (shape,))
            continue
        allowed.pop(name, None)
        allowed |= packed[name].layout.tensors(name, *packed[name].shape)
    return allowed | {name: Allowed(FLOATS, ONE_NUMBER) for names in kv_scale_names(config) for name in names}


def _verify_tensor(file: TensorFile, entry: TensorEntry, allowed: Allowed) -> None:
    if entry.shape not in allowed.shapes:
        raise CheckpointError(
            f"{file.path}: tensor {entry.name}: has shape {entry.shape}, "
            f"but config.json asks for {_shown(allowed.shapes)}"
        )
    if entry.dtype not in allowed.dtypes:
        raise CheckpointError(
            f"{file.path}: tensor {entry.name}: stored as {entry.dtype!r}, must be one of {', '.join(allowed.dtypes)}"
        )


def _shown(shapes: Collection[tuple[int, ...]]) -> str:
    return " or ".join(str(shape) for shape in shapes)
