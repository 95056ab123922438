"""What an operator gives for a distillation, read and checked before anything is computed."""

import tempfile
from pathlib import Path
from typing import NamedTuple

import torch

from gemline.distill.network import Network
from gemline.engine.config import Gemma2Config
from gemline.engine.weights import load_weights
from gemline.errors import CheckpointError, ConfigurationError
from gemline.text.tokenizer import Tokenizer

_WIDE_PARAMETERS = 10**9  # a teacher of more keeps the dtype it is stored in, for memory's sake


class Teacher(NamedTuple):
    """A checkpoint to learn from."""

    network: Network
    tokenizer: Tokenizer


def load_teacher(directory: Path, device: str) -> Teacher:
    """The teacher's weights and tokenizer.

    Raises CheckpointError when the directory holds no Gemma 2 checkpoint that can be read.
    """
    config = Gemma2Config.load(directory)
    tokenizer = Tokenizer.load(directory)
    if tokenizer.vocab_size > config.vocab_size:
        numbers = f"{tokenizer.vocab_size} tokens, but config.json has vocab_size {config.vocab_size}"
        raise CheckpointError(f"{directory}: tokenizer.json has {numbers}")
    stored = load_weights(directory, config)
    dtype = torch.float32 if stored.num_parameters < _WIDE_PARAMETERS else None
    weights = {name: stored[name].to(device, dtype) for name in stored}
    return Teacher(Network(config, weights), tokenizer)


def load_student_config(path: Path, teacher: Gemma2Config) -> Gemma2Config:
    """The shape of the student, from a config.json of any name.

    Raises CheckpointError when it is no Gemma 2 config, ConfigurationError when its vocabulary is not the teacher's.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(scratch) / "config.json"
        try:
            copied.write_bytes(path.read_bytes())
            config = Gemma2Config.load(copied.parent)
        except OSError as error:
            raise ConfigurationError(f"--student-config {path}: cannot be read: {error.strerror}") from error
        except CheckpointError as error:
            raise CheckpointError(error.message.replace(str(copied), f"--student-config {path}")) from None
    if config.vocab_size != teacher.vocab_size:
        numbers = f"vocab_size is {config.vocab_size}, the teacher's {teacher.vocab_size}"
        raise ConfigurationError(f"--student-config {path}: {numbers}: a student needs its teacher's vocabulary")
    return config
