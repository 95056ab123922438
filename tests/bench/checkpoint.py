"""Writes the checkpoints that are measured: Gemma 2 of a given shape with random bfloat16 weights from a fixed seed.

    python tests/bench/checkpoint.py bench|2b|27b-4 [DIRECTORY]

Every server of the comparison loads the directory as it is: gemline, transformers and vLLM read tokenizer.json,
llama.cpp's converter tokenizer.model. Without DIRECTORY it is made once, in the cache.
"""

import argparse
import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.sentencepiece_file import sentencepiece_model
from support.noise_model.gemma import BOS, END_OF_TURN, EOS, PAD, config_values
from support.noise_model.noise import to_bfloat16, uniform

from gemline.cache import cache_dir
from gemline.demo.tokenizer import SPACE, build_tokenizer
from gemline.engine.config import Gemma2Config

_UNKNOWN = 3
_QUIET = 0.1  # embedding of what no answer should hold: control tokens and bytes, which no server streams one by one
_NUM_QUIET = 1024
_ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Shape:
    """What differs between the checkpoints, under the names of config.json."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    sliding_window: int
    max_position_embeddings: int
    query_pre_attn_scalar: int

    @property
    def config(self) -> dict[str, Any]:
        """config.json as transformers writes it for Gemma 2."""
        return config_values(vars(self))


SHAPES = {
    "bench": Shape(32000, 1024, 6144, 12, 8, 4, 128, 512, 2048, 128),
    "2b": Shape(256000, 2304, 9216, 26, 8, 4, 256, 4096, 8192, 256),
    "27b-4": Shape(256000, 4608, 36864, 4, 32, 16, 128, 4096, 8192, 144),  # 4 of its 46 layers
}


def cached(name: str) -> Path:
    """The checkpoint of that shape in the cache, made when it is not there."""
    target = cache_dir() / f"bench-{name}"
    if not (target / "config.json").exists():
        print(f"writing {target}", file=sys.stderr)
        write(target, SHAPES[name])
    return target


def sizes(name: str) -> dict[str, int]:
    """How many weights every token meets, and how many more where it has logits."""
    shapes = Gemma2Config(**vars(SHAPES[name])).parameter_shapes()
    counts = {tensor: math.prod(size) for tensor, size in shapes.items() if len(size) > 1}
    head = counts.pop("model.embed_tokens.weight")
    return {"weights": sum(counts.values()), "head_weights": head}


def write(target: Path, shape: Shape) -> None:
    """Fills `target`; config.json comes last, so that a directory with one is whole."""
    target.mkdir(parents=True, exist_ok=True)
    tokenizer = padded_tokenizer(shape.vocab_size)
    (target / "tokenizer.json").write_text(tokenizer.to_str(pretty=False), encoding="utf-8")
    (target / "tokenizer.model").write_bytes(sentencepiece_model(tokenizer))
    _write_json(target / "tokenizer_config.json", _tokenizer_config(tokenizer, shape))
    _write_json(target / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [EOS, END_OF_TURN]})
    _write_json(target / ".config.json", shape.config)
    (target / ".config.json").rename(target / "config.json.new")
    _write_weights(target / "model.safetensors", shape)
    (target / "config.json.new").rename(target / "config.json")


def padded_tokenizer(vocab_size: int) -> Tokenizer:
    """The demo's tokenizer with words of one token each after its own, which no text is cut into."""
    rules = json.loads(build_tokenizer().to_str())
    vocab: dict[str, int] = rules["model"]["vocab"]
    vocab.update({f"{SPACE}word{token_id}": token_id for token_id in range(len(vocab), vocab_size)})
    return Tokenizer.from_str(json.dumps(rules))


def _tokenizer_config(tokenizer: Tokenizer, shape: Shape) -> dict[str, Any]:
    roles = {"pad_token": PAD, "eos_token": EOS, "bos_token": BOS, "unk_token": _UNKNOWN}
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": shape.max_position_embeddings,
        "clean_up_tokenization_spaces": False,
        **{role: tokenizer.id_to_token(token_id) for role, token_id in roles.items()},
    }


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _write_weights(path: Path, shape: Shape) -> None:
    """A safetensors file, tensor by tensor: the larger one would not fit into memory beside what makes it."""
    shapes = Gemma2Config(**vars(shape)).parameter_shapes()
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    stop = 0
    for name, size in shapes.items():
        start, stop = stop, stop + 2 * math.prod(size)
        header[name] = {"dtype": "BF16", "shape": size, "data_offsets": [start, stop]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name, size in shapes.items():
            for rows in _noise(name, size):
                file.write(rows)


def _noise(name: str, size: tuple[int, ...]) -> Iterator[bytes]:
    """Keeps what a layer reads and writes about 1 wide; norm weights w act as 1 + w."""
    rms = 0.1 if len(size) == 1 else 1 / math.sqrt(size[-1])
    for start in range(0, size[0], _ROWS_AT_ONCE):
        rows = uniform(0, f"{name}/{start}", (min(_ROWS_AT_ONCE, size[0] - start), *size[1:]), rms)
        if name == "model.embed_tokens.weight" and start < _NUM_QUIET:
            rows[: _NUM_QUIET - start] *= _QUIET
        yield to_bfloat16(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("directory", type=Path, nargs="?")
    options = parser.parse_args()
    if options.directory:
        write(options.directory, SHAPES[options.shape])
    print(options.directory or cached(options.shape))


if __name__ == "__main__":
    main()
