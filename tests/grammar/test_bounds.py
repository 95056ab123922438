"""Constraints that are wrong, or made to hurt: each is its own request's error, in time, with the field's name."""

import json
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from support.grammars import END_IDS, VOCAB_SIZE, demo_tokenizer, drawn, grammar_of, regex_of, schema_of

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest, Overloaded
from gemline.grammar import grammars as grammars_module
from gemline.grammar.compiling import compile_constraint
from gemline.grammar.grammars import Grammars
from gemline.grammar.limits import MAX_BYTES, GrammarLimits

LIMITS = GrammarLimits()
TERMINALS = "\n".join(f"T{i}: T{i + 1} T{i + 1}" for i in range(40))
WRONG = {
    "no regex": regex_of("(ab"),
    "look-around": regex_of("(?=a)b"),
    "an empty regex": regex_of(""),
    "no schema": schema_of('{"type": "strin"}'),
    "a schema that is no object": schema_of("[]"),
    "a schema that is no JSON": schema_of("{"),
    "an empty schema": schema_of(" "),
    "a keyword that is not understood": schema_of('{"type": "object", "dependentSchemas": {}}'),
    "nothing fits it": schema_of('{"type": "object", "properties": {"a": false}, "required": ["a"]}'),
    "it refers to itself alone": schema_of('{"$ref": "#"}'),
    "no grammar": grammar_of("start"),
    "a grammar without end": grammar_of("start: s\ns: s"),
    "a terminal of 2**40 characters": grammar_of(f'start: T0\n{TERMINALS}\nT40: "a"'),
    "a product of many choices": schema_of(
        json.dumps(
            {
                "allOf": [
                    {"anyOf": [{"properties": {f"a{i}{j}": {"type": "string"}}} for j in range(4)]} for i in range(9)
                ]
            }
        )
    ),
    "deep": schema_of('{"type": "array", "items": ' * 2000 + "{}" + "}" * 2000),
}
# Compiled in no time, and found out on the way.
SLOW = {
    "a million letters": regex_of("x(a{1000}){1000}"),
    "another million": regex_of("[a-z](a{1000}){1000}"),
    "two thousand fields": schema_of(
        json.dumps({"type": "object", "properties": {f"p{i}": {"type": "integer"} for i in range(2000)}})
    ),
}


@pytest.fixture
async def grammars() -> AsyncIterator[Grammars]:
    made = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS)
    yield made
    made.close()


@pytest.mark.parametrize("constraint", WRONG.values(), ids=WRONG)
async def test_what_cannot_be_read_names_the_field(grammars: Grammars, constraint: Constraint) -> None:
    with pytest.raises(InvalidRequest, match=r"^response_format: .{5}") as raised:
        await grammars.matcher(constraint)
    assert raised.value.param == "response_format"
    assert len(raised.value.message) < 400
    assert "\n" not in raised.value.message


@pytest.mark.parametrize("constraint", SLOW.values(), ids=SLOW)
async def test_what_is_too_much_on_the_way_fails_before_long(grammars: Grammars, constraint: Constraint) -> None:
    await grammars.matcher(regex_of("a"))  # the vocabulary is made
    start_s = time.monotonic()
    try:
        matcher = await grammars.matcher(constraint)
    except InvalidRequest as error:
        failure: str | None = error.message
    else:
        with pytest.raises(AssertionError):
            drawn(matcher, seed=0, max_tokens=10_000)
        failure = matcher.failure
    assert failure is not None
    assert failure.startswith("response_format: ")
    assert "tokens of the answer" in failure
    assert time.monotonic() - start_s < 60


async def test_a_text_over_the_limit_is_refused_with_both_numbers(grammars: Grammars) -> None:
    with pytest.raises(InvalidRequest, match=f"has {MAX_BYTES + 1} bytes; at most {MAX_BYTES} are taken"):
        await grammars.matcher(regex_of("a" * (MAX_BYTES + 1)))


async def test_compiling_that_takes_too_long_is_given_up_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()
    compile_really = compile_constraint

    def slow(*arguments: Any) -> object:
        go_on.wait(30)
        return compile_really(*arguments)

    monkeypatch.setattr(grammars_module, "compile_constraint", slow)
    limits = replace(LIMITS, compile_s=0.2, queue_s=0.4)
    grammars = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS, limits)
    for _ in range(2):
        with pytest.raises(InvalidRequest, match=r"compiling took over \d\.\d s; the limit is 0\.2 s"):
            await grammars.matcher(regex_of("ab"))
    with pytest.raises(Overloaded, match=r"no thread was free for 0\.4 s"):  # both are still at it
        await grammars.matcher(regex_of("abc"))
    go_on.set()
    assert await grammars.matcher(regex_of("abcd"))
    grammars.close()


async def test_no_more_wait_to_be_compiled_than_may() -> None:
    grammars = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS, replace(LIMITS, max_queued=0))
    with pytest.raises(Overloaded):
        await grammars.matcher(regex_of("a"))
    grammars.close()


async def test_a_step_that_takes_too_long_fails_its_own_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    hurried = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS, replace(LIMITS, step_s=0.05))
    matcher, other = await hurried.matcher(regex_of("ab")), await hurried.matcher(regex_of("ab"))
    begun, go_on = threading.Event(), threading.Event()

    def slow(token_id: int) -> bytes:
        begun.set()
        go_on.wait(30)
        return b""

    monkeypatch.setattr(matcher, "_follow", slow)
    token_id = demo_tokenizer().encode_text("a")[0]
    matcher.advance(token_id)
    assert begun.wait(30)
    assert matcher.mask() is None
    assert matcher.failure is not None
    assert "token 1 of the answer took over 0." in matcher.failure
    assert "the limit is 0.05 s" in matcher.failure
    other.advance(token_id)
    assert other.mask() is not None
    go_on.set()
    hurried.close()


async def test_where_no_thread_is_free_the_mask_is_worked_out_at_once(grammars: Grammars) -> None:
    matcher = await grammars.matcher(regex_of("ab"))
    free = threading.Event()
    busy = [grammars._maskers.submit(free.wait, 30) for _ in range(grammars._maskers._max_workers)]
    matcher.advance(demo_tokenizer().encode_text("a")[0])
    assert matcher.mask() is not None
    free.set()
    assert all(one.result() for one in busy)


async def test_without_llguidance_the_answer_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*arguments: object) -> object:
        raise ImportError("llguidance")

    monkeypatch.setattr(grammars_module, "vocabulary", missing)
    grammars = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS)
    with pytest.raises(InvalidRequest, match="llguidance is not installed"):
        await grammars.matcher(Constraint(Syntax.REGEX, "a", param="tools"))
    grammars.close()
