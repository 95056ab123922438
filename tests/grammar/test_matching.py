"""What a constraint lets through: any walk through the masks is a text that follows it, and ends where it may."""

import json
import re
from collections.abc import AsyncIterator
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.grammars import (
    END_IDS,
    VOCAB_SIZE,
    allowed,
    demo_tokenizer,
    drawn,
    grammar_of,
    regex_of,
    schema_of,
)

from gemline.grammar.grammars import Grammars


@pytest.fixture(scope="module")
async def grammars() -> AsyncIterator[Grammars]:
    made = Grammars(demo_tokenizer, VOCAB_SIZE, END_IDS)
    yield made
    made.close()


scalars = st.one_of(
    st.builds(
        lambda low, room: {"type": "integer", "minimum": low, "maximum": low + room},
        st.integers(-9, 9),
        st.integers(0, 999),
    ),
    st.builds(lambda longest: {"type": "string", "maxLength": longest}, st.integers(0, 12)),
    st.just({"type": "boolean"}),
    st.just({"type": "null"}),
    st.builds(
        lambda values: {"enum": values},
        st.lists(st.text(max_size=6) | st.integers(-99, 99), min_size=1, max_size=4, unique=True),
    ),
)


def nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = st.text('abcXYZ_ é"\\', min_size=1, max_size=5)
    lists = st.builds(
        lambda items, low, room: {"type": "array", "items": items, "minItems": low, "maxItems": low + room},
        inner,
        st.integers(0, 2),
        st.integers(0, 2),
    )
    objects = st.builds(
        lambda fields, count: {
            "type": "object",
            "properties": fields,
            "required": list(fields)[:count],
            "additionalProperties": False,
        },
        st.dictionaries(names, inner, min_size=1, max_size=3),
        st.integers(0, 3),
    )
    return lists | objects | st.builds(lambda options: {"anyOf": options}, st.lists(inner, min_size=1, max_size=3))


schemas = st.recursive(scalars, nested, max_leaves=6)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=schemas, seed=st.integers(0, 2**16))
async def test_whatever_is_drawn_parses_and_is_valid_by_its_schema(grammars: Grammars, schema: Any, seed: int) -> None:
    token_ids = drawn(await grammars.matcher(schema_of(json.dumps(schema))), seed, max_tokens=1500)
    assert token_ids[-1] in END_IDS
    jsonschema.validate(json.loads(demo_tokenizer().decode(token_ids)), schema)


@pytest.mark.parametrize(
    "regex", [r"[a-z]{3,9} \d{2}", r"^(ja|nein|日本|é{2,4})$", r"\$[0-9]{1,5}\.00", "<end_of_turn>[ab]{2}"]
)
async def test_whatever_is_drawn_matches_its_regex_as_a_whole(grammars: Grammars, regex: str) -> None:
    for seed in range(8):
        token_ids = drawn(await grammars.matcher(regex_of(regex)), seed)
        assert token_ids[-1] in END_IDS
        assert re.fullmatch(regex, demo_tokenizer().decode(token_ids)), token_ids
        assert not demo_tokenizer().control_ids & set(token_ids[:-1])


async def test_a_grammar_of_rules_is_followed(grammars: Grammars) -> None:
    sums = grammar_of('start: term ("+" term)~2..4\nterm: /[1-9][0-9]?/ | "(" start ")"')
    for seed in range(8):
        token_ids = drawn(await grammars.matcher(sums), seed, max_tokens=4000)
        if token_ids[-1] in END_IDS:
            text = demo_tokenizer().decode(token_ids)
            while (shorter := re.sub(r"\([0-9]+(\+[0-9]+){2,4}\)", "1", text)) != text:
                text = shorter
            assert re.fullmatch(r"[0-9]+(\+[0-9]+){2,4}", text)


async def test_an_end_token_is_allowed_only_where_the_answer_may_end(grammars: Grammars) -> None:
    matcher = await grammars.matcher(regex_of("ab(cd)?"))
    text = ""
    for token_id in demo_tokenizer().encode_text("abcd"):
        may_end = bool(set(END_IDS) & set(allowed(matcher.mask())))
        assert may_end == (text in ("ab", "abcd"))
        matcher.advance(token_id)
        text += demo_tokenizer().decode([token_id])
    assert set(allowed(matcher.mask())) == set(END_IDS)


async def test_a_matcher_made_behind_generated_tokens_goes_on_as_the_first_would_have(grammars: Grammars) -> None:
    constraint = schema_of('{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}')
    token_ids = drawn(await grammars.matcher(constraint), seed=3)
    for num in range(len(token_ids) - 1):
        first, later = await grammars.matcher(constraint), await grammars.matcher(constraint, token_ids[:num])
        for token_id in token_ids[:num]:
            first.advance(token_id)
        assert first.mask() == later.mask()


async def test_two_answers_of_one_constraint_do_not_touch_each_other(grammars: Grammars) -> None:
    constraint = regex_of("(ab|cd)")
    one, other = await grammars.matcher(constraint), await grammars.matcher(constraint)
    (token_id,) = demo_tokenizer().encode_text("a")
    one.advance(token_id)
    assert demo_tokenizer().encode_text("c")[0] in allowed(other.mask())
    assert demo_tokenizer().encode_text("c")[0] not in allowed(one.mask())


async def test_logits_may_be_wider_than_the_tokenizer() -> None:
    wide = Grammars(demo_tokenizer, VOCAB_SIZE + 60, END_IDS)
    matcher = await wide.matcher(regex_of("[^0-9]+"))
    assert max(allowed(matcher.mask())) < VOCAB_SIZE
    wide.close()
