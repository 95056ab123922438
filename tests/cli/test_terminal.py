"""What is written to a terminal, and what to a pipe."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemline.cli.terminal import Stopwatch, printable, write_answer
from gemline.client import Piece, Usage


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    terminal = Terminal()
    write_answer(text, terminal)
    assert not any(ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 for char in terminal.getvalue() if char not in "\n\t")


@given(st.text())
def test_a_pipe_gets_the_answer_exactly(text: str) -> None:
    pipe = io.StringIO(newline="")
    write_answer(text, pipe)
    assert pipe.getvalue() == text


def test_an_escape_sequence_is_spelled_out() -> None:
    assert printable("\x1b[2Jdü\n\t") == "\\x1b[2Jdü\n\t"


def test_speed_is_counted_after_the_first_token() -> None:
    watch = Stopwatch(begun=10.0, first=10.5, last=12.5)
    assert watch.summary(Usage(7, 5)) == "(7 tokens in, 5 out, 2.0 tokens/s, first after 0.50 s)"


@pytest.mark.parametrize("usage", [None, Usage(7, 1)])
def test_an_answer_without_a_second_token_has_no_speed(usage: Usage | None) -> None:
    watch = Stopwatch()
    watch.saw(Piece("a"))
    assert "tokens/s" not in watch.summary(usage)
