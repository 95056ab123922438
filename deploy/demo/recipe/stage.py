"""A stage's files: its snapshot, and the checkpoint made of it."""

from pathlib import Path

from gemline.distill.export import export
from gemline.distill.network import Network
from gemline.distill.snapshots import load_snapshot
from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError
from gemline.text.tokenizer import read_tokenizer_file
from recipe.sizes import STAGES, Stage

_STOP_TOKEN_IDS = [1, 107]


def find_stage(name: str) -> Stage:
    """The stage of that name."""
    return next(stage for stage in STAGES if stage.name == name)


def config_of(stage: Stage) -> Gemma2Config:
    """The shape of its model."""
    return Gemma2Config(**{key: stage.config[key] for key in stage.config.keys() & Gemma2Config.__dataclass_fields__})


def trained(out: Path, name: str, *, compiled: bool = False) -> Network:
    """The model of a stage as its last snapshot has it. Raises ConfigurationError when there is none."""
    state = load_snapshot(out / name)
    if state is None:
        raise ConfigurationError(f"{out / name}: no snapshot; train {name} first")
    return Network(config_of(find_stage(name)), state["weights"], compiled=compiled)


def export_stage(out: Path, name: str) -> Path:
    """Writes the checkpoint of a stage as its last snapshot has it, and gives its directory."""
    target = out / name / "model"
    weights = trained(out, name).weights
    export(target, weights, find_stage(name).config, _STOP_TOKEN_IDS, read_tokenizer_file(out / "tokenizer.json"))
    return target
