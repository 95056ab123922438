"""Writing a model's words, and ours beside them, to a terminal or a pipe."""

import os
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from gemline.client import Piece, Usage

_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def printable(text: str) -> str:
    """The text with control characters spelled out: a model's words must not steer the terminal."""
    return text.translate(_CONTROLS)


def write_answer(text: str, stream: TextIO | None = None) -> None:
    """Write an answer's text at once; a pipe gets it exactly."""
    stream = stream or sys.stdout
    stream.write(printable(text) if stream.isatty() else text)
    stream.flush()


def remark(text: str) -> None:
    """Write a line about the answer, dimly, where it does not mix with piped output."""
    colored = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    print(f"\x1b[2m{text}\x1b[0m" if colored else text, file=sys.stderr, flush=True)


@dataclass(slots=True)
class Stopwatch:
    """How fast an answer comes."""

    begun: float = field(default_factory=time.monotonic)
    first: float | None = None
    last: float | None = None

    def saw(self, piece: "Piece") -> None:
        """Take the time of a piece."""
        self.last = time.monotonic()
        if self.first is None:
            self.first = self.last

    def summary(self, usage: "Usage | None") -> str:
        """One line: tokens, tokens a second after the first one, seconds until the first one."""
        if usage is None or self.first is None or self.last is None:
            return "(stopped)"
        num_tokens = usage.completion_tokens
        parts = [f"{usage.prompt_tokens} tokens in, {num_tokens} out"]
        if num_tokens > 1 and self.last > self.first:
            parts.append(f"{(num_tokens - 1) / (self.last - self.first):.1f} tokens/s")
        return f"({', '.join([*parts, f'first after {self.first - self.begun:.2f} s'])})"
