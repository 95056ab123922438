"""From what a person names a model by to a directory that holds it: a path, a Hugging Face id, or nothing at all."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemline.demo.shipped import SHIPPED
from gemline.errors import ConfigurationError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
MODEL_FILES = [
    "*.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "generation_config.json",
    "tokenizer.json",
]


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model on this disk and the name it is served by unless the operator gives another."""

    model_dir: Path
    name: str


def find_model(model: str | None) -> ModelSource:
    """The model that `--model` names; None is the demo model.

    Raises ConfigurationError when it is neither a directory nor something the hub gives us.
    """
    if model is None:
        return ModelSource(SHIPPED, "gemline-demo")
    path = Path(model).expanduser()
    if path.is_dir():
        return ModelSource(path, path.resolve().name)
    if path.exists():
        raise ConfigurationError(f"--model {model}: a file, not a directory with config.json and safetensors")
    if not _HUB_ID.fullmatch(model):
        raise ConfigurationError(f"--model {model}: no such directory, and not a Hugging Face id (owner/name)")
    return ModelSource(_download(model), model.rpartition("/")[2])


def _download(repo_id: str) -> Path:
    with hub_errors(f"--model {repo_id}", repo_id):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo_id, allow_patterns=MODEL_FILES))


@contextmanager
def hub_errors(named: str, repo_id: str) -> Iterator[None]:
    """Inside, what goes wrong with the hub is raised as a ConfigurationError that begins with what the user named."""
    import httpx2
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except GatedRepoError:
        hint = f"accept its terms at https://huggingface.co/{repo_id} and log in (`hf auth login`, or set HF_TOKEN)"
        raise ConfigurationError(f"{named}: the hub gates this model; {hint}") from None
    except RepositoryNotFoundError:
        raise ConfigurationError(f"{named}: the hub has no such model, or hides it from you") from None
    except RevisionNotFoundError:
        raise ConfigurationError(f"{named}: the hub's model has no such commit") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        reason = type(error).__name__
        hint = "download it elsewhere and give its directory"
        raise ConfigurationError(f"{named}: the hub cannot be reached ({reason}); {hint}") from None
