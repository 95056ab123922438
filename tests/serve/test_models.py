"""From `--model` to a directory, or a sentence that says what is wrong."""

from pathlib import Path

import pytest

from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError
from gemline.serve.models import find_model


def test_a_directory_is_taken_and_named_after_itself(tmp_path: Path) -> None:
    model_dir = tmp_path / "gemma-2-9b-it"
    model_dir.mkdir()
    source = find_model(str(model_dir))
    assert (source.model_dir, source.name) == (model_dir, "gemma-2-9b-it")


def test_no_model_is_the_demo() -> None:
    source = find_model(None)
    assert source.name == "gemline-demo"
    assert Gemma2Config.load(source.model_dir).sliding_window == 256
    assert (source.model_dir / "model.safetensors").exists()


@pytest.mark.parametrize("name", ["/no/such/place", "nothing", "a/b/c"])
def test_what_is_neither_a_directory_nor_an_id_is_named(name: str) -> None:
    with pytest.raises(ConfigurationError, match=name):
        find_model(name)


def test_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.gguf"
    file.touch()
    with pytest.raises(ConfigurationError, match=r"weights\.gguf: a file"):
        find_model(str(file))


def test_a_hub_that_cannot_be_reached_is_said_in_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=r"google/gemma-2-2b-it: the hub cannot be reached"):
        find_model("google/gemma-2-2b-it")
