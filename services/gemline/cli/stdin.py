"""Reading what a person, or a pipe, says to a command."""

import contextlib
import sys

from gemline.errors import InvalidRequest


def read_stdin() -> str:
    """All of standard input; raises InvalidRequest when it is not UTF-8."""
    return _decoded(sys.stdin.buffer.read())


def read_line(prompt: str) -> str | None:
    """The next line without its end; None when there are no more. A terminal gets `prompt` and line editing."""
    if not sys.stdin.isatty():
        line = sys.stdin.buffer.readline()
        return _decoded(line).rstrip("\r\n") if line else None
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # importing it gives input() editing and history
    try:
        return input(prompt)
    except EOFError:
        print(file=sys.stderr)
        return None


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"standard input is not UTF-8: {error.reason} at byte {error.start}") from None
