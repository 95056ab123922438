"""Demo checkpoints: the same bytes every time, a model that needs all of Gemma 2 to be computed right."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.noise_model.checkpoint import DEMO, TINY, DemoShape, cached_demo, make_checkpoint
from support.solo import Solo

from gemline.demo.tokenizer import build_tokenizer
from gemline.demo.words import WORDS
from gemline.engine.config import Gemma2Config
from gemline.engine.model import Gemma2Model
from gemline.engine.weights import load_weights
from gemline.errors import ConfigurationError
from gemline.text.tokenizer import Tokenizer

SHAPES = pytest.mark.parametrize("shape", [DEMO, TINY], ids=lambda shape: shape.name)
QUESTIONS = ("hello", "what is a river?", "tell me about the world")


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared out, most of all while other processes run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[DemoShape], Path]:
    folders: dict[str, Path] = {}

    def make(shape: DemoShape) -> Path:
        if shape.name not in folders:
            folders[shape.name] = tmp_path_factory.mktemp(shape.name)
            make_checkpoint(folders[shape.name], shape)
        return folders[shape.name]

    return make


Made = Callable[[DemoShape], Path]


def model(directory: Path, **changes: object) -> Gemma2Model:
    config = Gemma2Config.load(directory)
    return Gemma2Model(replace(config, **changes), load_weights(directory, config), torch.float32)  # type: ignore[arg-type]


def turn(question: str) -> list[int]:
    text = f"<bos><start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n"
    return list(build_tokenizer().encode(text, add_special_tokens=False).ids)


def logits(model: Gemma2Model, num_tokens: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(0)
    token_ids = torch.randint(110, 1024, (num_tokens,), generator=random).tolist()
    return Solo(model, num_tokens).forward(token_ids)


@SHAPES
def test_the_same_seed_gives_the_same_bytes(made: Made, tmp_path: Path, shape: DemoShape) -> None:
    make_checkpoint(tmp_path / "again", shape)
    names = sorted(path.name for path in made(shape).iterdir())
    assert names == ["SHA256SUMS", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json"]
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (made(shape) / name).read_bytes(), name


def test_another_seed_gives_another_model_of_the_same_shape(made: Made, tmp_path: Path) -> None:
    make_checkpoint(tmp_path, TINY, seed=1)
    assert (tmp_path / "config.json").read_bytes() == (made(TINY) / "config.json").read_bytes()
    assert (tmp_path / "model.safetensors").read_bytes() != (made(TINY) / "model.safetensors").read_bytes()


@SHAPES
def test_the_files_fit_each_other(made: Made, shape: DemoShape) -> None:
    config = Gemma2Config.load(made(shape))
    tokenizer = Tokenizer.load(made(shape) / "tokenizer.json")
    assert (config.vocab_size, config.bos_token_id) == (tokenizer.vocab_size, tokenizer.bos_id)
    assert config.stop_token_ids == (1, 107)
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)


@SHAPES
def test_its_logits_are_finite_in_both_dtypes(made: Made, shape: DemoShape) -> None:
    config = Gemma2Config.load(made(shape))
    for dtype in (torch.float32, torch.bfloat16):
        assert logits(Gemma2Model(config, load_weights(made(shape), config), dtype), 40).isfinite().all()


@SHAPES
@pytest.mark.parametrize(
    "change",
    [
        {"attn_logit_softcapping": None},
        {"final_logit_softcapping": None},
        {"query_pre_attn_scalar": 64.0},
        {"rope_theta": 20000.0},
        {"sliding_window": 250},
        {"sliding_window": 15},
    ],
    ids=str,
)
def test_each_of_gemmas_traps_changes_its_logits(made: Made, shape: DemoShape, change: dict[str, object]) -> None:
    """A model that gets one of them wrong cannot pass for a right one."""
    num_tokens = shape.sliding_window + 10
    distance = (logits(model(made(shape)), num_tokens) - logits(model(made(shape), **change), num_tokens)).abs().max()
    assert distance > 0.05


@SHAPES
def test_greedy_answers_vary_and_depend_on_the_question(made: Made, shape: DemoShape) -> None:
    answers = [Solo(model(made(shape)), 200).generate(turn(question), 60) for question in QUESTIONS]
    assert all(len(set(answer)) > 20 for answer in answers)
    assert len({tuple(answer) for answer in answers}) == len(answers)


def test_the_demo_answers_in_words(made: Made) -> None:
    answer = Solo(model(made(DEMO)), 200).generate(turn(QUESTIONS[0]), 60)
    spoken = build_tokenizer().decode(answer).replace(".", " ").split()
    assert sum(word in WORDS for word in spoken) > 0.9 * len(spoken)


def test_the_cached_demo_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path / "cache"))
    first = cached_demo(TINY)
    made_at = (first / "config.json").stat().st_mtime_ns
    assert cached_demo(TINY) == first
    assert (first / "config.json").stat().st_mtime_ns == made_at
    assert first.parent == tmp_path / "cache"


def test_callers_at_the_same_time_get_one_whole_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path))
    with ThreadPoolExecutor(4) as pool:
        found = set(pool.map(lambda _: cached_demo(TINY), range(4)))
    assert [*tmp_path.iterdir()] == [*found]
    model(found.pop())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(ConfigurationError, match="file/cache: the demo model cannot be written there"):
        cached_demo(TINY)
