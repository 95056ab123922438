"""The demo model that comes with gemline knows what its card says: in every precision, and by its global layers."""

import json
import shutil
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from recipe.asking import Asked
from recipe.questions import Question, needle_questions, task_questions

from gemline.demo.shipped import SHIPPED
from gemline.engine.manifest import verify_manifest
from gemline.engine.options import KvDtype, Quantization
from gemline.text.chat import Turn

PER_TASK = 30
INSIDE, BEYOND, FAR_BEYOND = (128, 224), (288, 512), (512, 1024)  # of a window of 256
LEAST = {"add": 0.9, "recall": 0.75, "capital": 0.95, "json": 0.6, "greeting": 0.95, "list": 0.9, "copy": 0.6}
FORMS: list[tuple[str, Quantization]] = [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8")]
CAPITALS = {
    "Canada": "Ottawa",
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "the United Kingdom": "London",
    "the United States": "Washington",
}
Ask = Callable[..., str]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Tensors this small only lose by being shared out, most of all while other processes run."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@cache
def loaded(dtype: str, quantization: Quantization, kv_dtype: KvDtype = "auto") -> Asked:
    return Asked(SHIPPED, dtype, quantization, kv_dtype)


@cache
def questions() -> list[Question]:
    return task_questions(loaded("float32", "none").tokenizer, PER_TASK)


@cache
def needles() -> dict[tuple[int, int], list[Question]]:
    return needle_questions(loaded("float32", "none").tokenizer, PER_TASK)


def share_right(asked: Asked, wanted: list[Question]) -> float:
    answers = asked.answers([question.ids for question in wanted])
    return sum(said.strip() == q.answer for q, said in zip(wanted, answers, strict=True)) / len(wanted)


@pytest.fixture
def ask() -> Ask:
    """Turns, the user's first, to the model's answer."""
    asked = loaded("float32", "none")

    def answer(*contents: str) -> str:
        turns = [Turn("model" if index % 2 else "user", content) for index, content in enumerate(contents)]
        return asked.answers([asked.tokenizer.encode_chat(turns)])[0]

    return answer


def test_the_files_are_those_of_the_manifest() -> None:
    verify_manifest(SHIPPED)
    assert (SHIPPED / "SHA256SUMS").exists()
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 12_000_000


@pytest.mark.parametrize("question", ["What is 17 + 25?", "17+25", "What is 17 plus 25?", "Add 17 and 25."])
def test_it_adds_what_it_was_never_trained_to_add(ask: Ask, question: str) -> None:
    assert "42" in ask(question)


@pytest.mark.parametrize("name", ["Ada", "Tom", "Priya", "Zoltan"])
def test_it_remembers_a_name(ask: Ask, name: str) -> None:
    told = f"My name is {name}."
    greeted = ask(told)
    assert name in greeted
    assert name in ask(told, greeted, "What is my name?")
    sum_said = ask(told, greeted, "What is 3 + 4?")
    assert "7" in sum_said
    assert name in ask(told, greeted, "What is 3 + 4?", sum_said, "What is my name?")


def test_it_says_that_it_was_not_told(ask: Ask) -> None:
    assert "not told" in ask("What is my name?")


@pytest.mark.parametrize("country", CAPITALS)
def test_it_names_the_capitals_of_the_g7(ask: Ask, country: str) -> None:
    assert CAPITALS[country] in ask(f"What is the capital of {country}?")


def test_it_greets(ask: Ask) -> None:
    assert ask("Hello!").startswith("Hello")


def test_it_writes_json_when_asked(ask: Ask) -> None:
    assert json.loads(ask("Give me a JSON object with name Ada and age 36.")) == {"name": "Ada", "age": 36}


@pytest.mark.parametrize(("dtype", "quantization"), FORMS)
def test_held_out_questions_are_answered_in_every_precision(dtype: str, quantization: Quantization) -> None:
    asked = loaded(dtype, quantization)
    for task, least in LEAST.items():
        assert share_right(asked, [question for question in questions() if question.task == task]) >= least, task


def test_int4_still_adds() -> None:
    asked = loaded("bfloat16", "int4")
    for task in ("add", "recall", "capital"):
        wanted = [question for question in questions() if question.task == task]
        assert share_right(asked, wanted) >= LEAST[task] - 0.2, task


@pytest.mark.parametrize("task", ["add", "recall", "capital"])
def test_fp8_keys_and_values_lose_nothing_to_speak_of(task: str) -> None:
    """Three rows: a CPU is slow in fp8."""
    wanted = [question for question in questions() if question.task == task]
    assert share_right(loaded("bfloat16", "none", "fp8"), wanted) >= LEAST[task]


def test_a_needle_is_found_inside_the_window_and_beyond() -> None:
    asked = loaded("float32", "none")
    assert share_right(asked, needles()[INSIDE]) >= 0.6
    assert share_right(asked, needles()[BEYOND]) >= 0.6
    assert share_right(asked, needles()[FAR_BEYOND]) >= 0.4


def test_beyond_the_window_it_is_the_global_layers_that_find_it(tmp_path: Path) -> None:
    target = tmp_path / "ablated"
    shutil.copytree(SHIPPED, target, ignore=shutil.ignore_patterns("SHA256SUMS"))
    config = json.loads((target / "config.json").read_text())
    config["layer_types"] = ["sliding_attention"] * config["num_hidden_layers"]
    (target / "config.json").write_text(json.dumps(config))
    ablated = Asked(target, "float32", "none")
    assert share_right(ablated, needles()[INSIDE]) >= share_right(loaded("float32", "none"), needles()[INSIDE]) - 0.1
    assert share_right(ablated, needles()[BEYOND]) <= 0.1
