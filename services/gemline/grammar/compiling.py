"""From a constraint's text to llguidance's matcher, or to an InvalidRequest that names the field. Takes its time."""

import re
from typing import TYPE_CHECKING

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.grammar.limits import MAX_BYTES, GrammarLimits

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

# Between the parts of a JSON value; without a bound a model may go on with spaces for good.
_SPACE = r"[\x20\x0A\x0D\x09]{1,32}"
_MAX_REASON_CHARS = 300


def compile_constraint(constraint: Constraint, vocabulary: "LLTokenizer", limits: GrammarLimits) -> "LLMatcher":
    """At the beginning of an answer. Raises InvalidRequest when the constraint cannot be read, or is too large."""
    from llguidance import LLMatcher, LLParserLimits

    check_size(constraint)
    matcher = LLMatcher(
        vocabulary,
        _grammar(constraint),
        log_level=0,
        limits=LLParserLimits(
            initial_lexer_fuel=limits.initial_lexer_fuel,
            step_lexer_fuel=limits.step_lexer_fuel,
            step_max_items=limits.step_max_items,
            max_items_in_row=limits.max_items_in_row,
            max_lexer_states=limits.max_lexer_states,
            max_grammar_size=limits.max_grammar_size,
            verbose_errors=False,
        ),
    )
    if matcher.is_error():
        raise InvalidRequest(f"{constraint.param}: {reason_of(matcher.get_error())}", param=constraint.param)
    return matcher


def check_size(constraint: Constraint) -> None:
    """Raises InvalidRequest for an empty text and for one over the limit."""
    num_bytes = len(constraint.text.encode())
    if not constraint.text.strip():
        raise InvalidRequest(f"{constraint.param}: the {constraint.syntax.value} is empty", param=constraint.param)
    if num_bytes > MAX_BYTES:
        raise InvalidRequest(
            f"{constraint.param}: the {constraint.syntax.value} has {num_bytes} bytes; at most {MAX_BYTES} are taken",
            param=constraint.param,
        )


def reason_of(message: str) -> str:
    """What llguidance complains of, on one line."""
    text = re.sub(r"<(non-verbose/>|state>.*|grammar>.*)", "", message, flags=re.DOTALL)
    text = " ".join(text.split())
    return text if len(text) <= _MAX_REASON_CHARS else text[:_MAX_REASON_CHARS] + "..."


def _grammar(constraint: Constraint) -> str:
    from llguidance import LLMatcher

    match constraint.syntax:
        case Syntax.REGEX:
            return LLMatcher.grammar_from_regex(_unanchored(constraint.text))
        case Syntax.GRAMMAR:
            return LLMatcher.grammar_from_lark(constraint.text)
        case Syntax.JSON_SCHEMA:
            try:
                return LLMatcher.grammar_from_json_schema(
                    constraint.text,
                    overrides={
                        "whitespace_flexible": True,
                        "whitespace_pattern": _SPACE,
                        "lenient": constraint.lenient,
                        "coerce_one_of": constraint.lenient,
                    },
                )
            except ValueError as error:
                raise InvalidRequest(f"{constraint.param}: {reason_of(str(error))}", param=constraint.param) from None


def _unanchored(regex: str) -> str:
    """Without the ^ and $ around it, which say what holds anyway: the whole answer matches."""
    end = regex[:-1] if re.search(r"(?<!\\)(\\\\)*\$\Z", regex) else regex
    return end.removeprefix("^")
