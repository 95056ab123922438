"""The published models by name. Sizes: their config.json on Hugging Face."""

from pathlib import Path

from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError

PUBLISHED = {
    "2b": Gemma2Config(),
    "9b": Gemma2Config(
        hidden_size=3584, intermediate_size=14336, num_hidden_layers=42, num_attention_heads=16, num_key_value_heads=8
    ),
    "27b": Gemma2Config(
        hidden_size=4608,
        intermediate_size=36864,
        num_hidden_layers=46,
        num_attention_heads=32,
        num_key_value_heads=16,
        head_dim=128,
        query_pre_attn_scalar=144.0,
    ),
}


def find_model(name: str) -> Gemma2Config:
    """One of them by a name such as `27b` or `google/gemma-2-27b-it`, else that of a checkpoint's folder.

    Raises ConfigurationError when it is neither, CheckpointError when the folder has no Gemma 2 model.
    """
    if Path(name).is_dir():
        return Gemma2Config.load(Path(name))
    parts = name.lower().rpartition("/")[2].split("-")
    found = [size for size in PUBLISHED if size in parts]
    if len(found) != 1:
        raise ConfigurationError(
            f"model {name!r} is no folder and no published size: {', '.join(PUBLISHED)}", param="model"
        )
    return PUBLISHED[found[0]]
