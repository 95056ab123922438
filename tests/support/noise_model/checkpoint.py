"""Writes checkpoints of noise as Hugging Face has them: the same bytes on every machine. Knows no engine."""

import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any

from support.noise_model.bigrams import Followers, followers_of
from support.noise_model.gemma import BOS, END_OF_TURN, EOS, config_values
from support.noise_model.noise import to_bfloat16
from support.noise_model.shape import DEMO, TINY, DemoShape
from support.noise_model.weights import make_weights
from tokenizers import Tokenizer

from gemline.cache import cache_dir
from gemline.demo.tokenizer import VOCAB_SIZE, build_tokenizer
from gemline.engine.config import Gemma2Config
from gemline.engine.manifest import write_manifest
from gemline.errors import ConfigurationError

__all__ = ["DEMO", "TINY", "DemoShape", "cached_demo", "make_checkpoint"]

_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "query_pre_attn_scalar",
    "sliding_window",
    "max_position_embeddings",
)
_FILES = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]


def make_checkpoint(target: Path, shape: DemoShape = DEMO, seed: int = 0) -> None:
    """Fills the directory `target`, made when it is not there; another seed gives another model of the same shape."""
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    _write_json(target / "config.json", _config_values(shape))
    _write_json(target / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [EOS, END_OF_TURN]})
    _write_weights(target / "model.safetensors", Gemma2Config.load(target), shape, tokenizer, seed)
    write_manifest(target, _FILES)


def cached_demo(shape: DemoShape = DEMO) -> Path:
    """The checkpoint of that shape in the user's cache, made once; concurrent callers get one and the same.

    Raises ConfigurationError when it cannot be written.
    """
    cache = cache_dir()
    target = cache / f"{shape.name}-{_recipe(shape)[:16]}"
    if target.exists():
        return target
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".making-") as scratch:
            made = Path(scratch) / "checkpoint"
            make_checkpoint(made, shape)
            _move(made, target)
    except OSError as error:
        raise ConfigurationError(f"{cache}: the demo model cannot be written there: {error.strerror}") from error
    return target


def _move(made: Path, target: Path) -> None:
    """A rename is atomic, so nobody sees half a checkpoint; a directory that is already there is a twin's."""
    try:
        made.rename(target)
    except OSError:
        if not target.exists():
            raise


def _recipe(shape: DemoShape) -> str:
    """Changes with the shape and with every line of code that makes a checkpoint."""
    digest = hashlib.sha256(repr(shape).encode())
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.read_bytes())
    return digest.hexdigest()


def _config_values(shape: DemoShape) -> dict[str, Any]:
    return config_values({"vocab_size": VOCAB_SIZE} | {name: getattr(shape, name) for name in _SIZES})


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _quiet_tokens(followers: Followers) -> list[int]:
    """Tokens that the model should hardly write: all that its text never has, or just those that end an answer."""
    if not followers:
        return [EOS, BOS, END_OF_TURN]
    written = {token for weighted in followers.values() for token, _ in weighted}
    return sorted(set(range(VOCAB_SIZE)) - written - followers.keys())


def _write_weights(path: Path, config: Gemma2Config, shape: DemoShape, tokenizer: Tokenizer, seed: int) -> None:
    # Not at the top: a demo that is in the cache is found without torch.
    import torch
    from safetensors.torch import save_file

    followers = followers_of(tokenizer, seed) if shape.knows_bigrams else {}
    tensors = {
        name: torch.frombuffer(bytearray(to_bfloat16(values)), dtype=torch.bfloat16).view(values.shape)
        for name, values in make_weights(shape, config, _quiet_tokens(followers), followers, seed)
    }
    save_file(tensors, path, metadata={"format": "pt"})
