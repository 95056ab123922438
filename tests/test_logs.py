import logging
import re

import pytest

from gemline.logs import LineFormatter, blotted


def line_of(message: str, *args: object, error: BaseException | None = None) -> str:
    exc_info = None if error is None else (type(error), error, error.__traceback__)
    record = logging.LogRecord("gemline.host", logging.WARNING, __file__, 1, message, args, exc_info)
    return LineFormatter("decode").format(record)


def test_a_line_says_when_who_and_what() -> None:
    pattern = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z WARNING decode\[\d+\] gemline\.host: lease 7 lost"
    assert re.fullmatch(pattern, line_of("lease %d lost", 7))


def test_a_traceback_stays_on_its_line() -> None:
    try:
        raise ValueError("first\nsecond")
    except ValueError as error:
        line = line_of("failed", error=error)
    assert "\n" not in line
    assert "ValueError: first\\nsecond" in line


def test_a_message_cannot_forge_a_second_line() -> None:
    assert "\n" not in line_of("model %s", "x\r\n2026-01-01 INFO all is well")


@pytest.mark.parametrize(
    ("secret", "kept"),
    [
        ("gk_0123abcd_" + "f" * 48, "gk_0123abcd_***"),
        ("redis://:sesame@10.0.0.1:6379/0", "redis://:***@10.0.0.1:6379/0"),
        ("redis://gemline:sesame@cache/0", "redis://gemline:***@cache/0"),
        ("Authorization: Bearer sesame", "Authorization: Bearer ***"),
        ("Bearer gk_0123abcd_" + "f" * 48, "Bearer gk_0123abcd_***"),
    ],
)
def test_secrets_are_blotted_out(secret: str, kept: str) -> None:
    assert blotted(f"with {secret} in it") == f"with {kept} in it"


@pytest.mark.parametrize("text", ["http://10.0.0.1:8000/v1/models", "127.0.0.1:50051", "epoch 17:42"])
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert blotted(text) == text
