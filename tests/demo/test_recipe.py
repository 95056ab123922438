"""The demo model's data: the same every time, right by its own rules, and nothing held out is ever trained on."""

import json
import re
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recipe.conversation import conversation
from recipe.examples import DemoExamples, as_example
from recipe.exchange import Exchange, Talk
from recipe.needles import haystack
from recipe.python_source import a_piece, sources
from recipe.sizes import STUDENT, TEACHER
from recipe.splits import a_code, is_held_out, two_addends
from recipe.stage import config_of, find_stage
from recipe.words import CAPITALS, G7

from gemline.demo.tokenizer import build_tokenizer
from gemline.text.chat import Turn
from gemline.text.tokenizer import Tokenizer

TOKENIZER = Tokenizer.load(build_tokenizer().to_str().encode())
SUM = re.compile(r"(\d+) \+ (\d+) = (\d+)\.")
TOLD = re.compile(r"(?:[Mm]y name is|I am|I'm|[Cc]all me) ([A-Z]\w+)")
numbers = st.integers(0, 10**6)
progresses = st.sampled_from([0.0, 0.3, 0.5, 1.0])


def made(number: int, progress: float = 0.5, *, held_out: bool = False) -> list[Exchange]:
    return conversation(Random(number), progress, held_out=held_out)


@given(numbers, progresses)
@settings(max_examples=200)
def test_an_example_of_a_number_is_always_the_same(number: int, progress: float) -> None:
    assert DemoExamples(TOKENIZER, 3)(number, progress) == DemoExamples(TOKENIZER, 3)(number, progress)


@given(numbers)
@settings(max_examples=400)
def test_sums_are_right_and_of_the_split(number: int) -> None:
    for held_out in (False, True):
        for exchange in made(number, held_out=held_out):
            for first, second, total in SUM.findall(exchange.answer):
                assert int(first) + int(second) == int(total)
                low, high = sorted((int(first), int(second)))
                assert is_held_out(f"{low}+{high}") == held_out


@given(numbers)
@settings(max_examples=400)
def test_a_name_that_is_recalled_is_the_last_that_was_told(number: int) -> None:
    told = ""
    for exchange in made(number):
        told = ([told, *TOLD.findall(exchange.question)])[-1]
        for name in re.findall(r"(?:Nice to meet you|Your name is),? (\w+)", exchange.answer):
            assert not is_held_out(name)
            assert name == told


@given(numbers)
@settings(max_examples=400)
def test_what_is_asked_in_json_is_answered_in_json(number: int) -> None:
    for exchange in made(number):
        if exchange.task == "json":
            assert isinstance(json.loads(exchange.answer), dict | list)


@given(numbers, st.integers(40, 1800))
@settings(max_examples=100)
def test_every_needle_that_is_asked_for_is_in_the_text(number: int, num_tokens: int) -> None:
    asked = haystack(Talk(Random(number), held_out=False), num_tokens)
    assert all(exchange.answer in asked[0].question for exchange in asked)


def test_what_everybody_tries_first_is_held_out() -> None:
    assert is_held_out("17+25")
    random = Random(0)
    assert all(sorted(two_addends(random, held_out=False)) != [17, 25] for _ in range(20_000))


def test_one_in_ten_is_held_out() -> None:
    random = Random(0)
    share = sum(is_held_out(a_code(random, held_out=random.random() < 0.5)) for _ in range(2000)) / 2000
    assert 0.45 < share < 0.55
    pairs = [is_held_out(f"{low}+{high}") for low in range(100) for high in range(low, 100)]
    assert 0.08 < sum(pairs) / len(pairs) < 0.12


def test_python_files_are_of_one_split_only() -> None:
    trained, kept = sources(held_out=False), sources(held_out=True)
    assert len(kept) > 5
    assert len(trained) > 5 * len(kept)
    assert not set(trained) & set(kept)
    assert a_piece(Random(1), 100, held_out=True) in "".join(kept)


def test_the_g7_are_seven_and_among_the_capitals() -> None:
    assert len(G7) == 7
    assert set(G7) <= set(CAPITALS)


@given(numbers)
@settings(max_examples=50)
def test_a_conversation_is_tokenized_as_the_server_does_and_answers_alone_are_learned(number: int) -> None:
    exchanges = made(number, 0.0)
    example = as_example(TOKENIZER, exchanges)
    turns = [turn for it in exchanges for turn in (Turn("user", it.question), Turn("model", it.answer))]
    asked = TOKENIZER.encode_chat(turns[:-1])
    assert example.ids[: len(asked)] == asked
    learned = [token for token, is_learned in zip(example.ids, example.learned, strict=True) if is_learned]
    ends = "".join(f"{it.answer}<end_of_turn>" for it in exchanges)
    assert TOKENIZER.decode(learned, keep_control=True) == ends


@pytest.mark.parametrize(("values", "most"), [(STUDENT, 12e6 / 2), (TEACHER, 15e6)])
def test_the_sizes_are_what_the_card_says(values: dict[str, int], most: float) -> None:
    stage = next(stage for stage in (find_stage("first"), find_stage("teacher")) if stage.config == values)
    num_parameters = sum(_product(shape) for shape in config_of(stage).parameter_shapes().values())
    assert 4e6 < num_parameters < most


def _product(shape: tuple[int, ...]) -> int:
    return shape[0] * (shape[1] if len(shape) > 1 else 1)
