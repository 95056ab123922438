"""A fault happens when an operator asked for it, and at no other time."""

import signal
import subprocess
import sys

import pytest

from gemline.errors import ConfigurationError
from gemline.failpoints import VARIABLE, CrashOnToken, failpoint


def test_without_the_variable_there_is_none() -> None:
    assert failpoint({}) is None
    assert failpoint({VARIABLE: ""}) is None


def test_it_is_what_the_variable_says() -> None:
    assert failpoint({VARIABLE: "crash_on_token:271"}) == CrashOnToken(271)


@pytest.mark.parametrize(
    "asked", ["crash_on_token", "crash_on_token:", "crash_on_token:-1", "crash_on_token:x", "sleep:1"]
)
def test_anything_else_is_refused_by_name(asked: str) -> None:
    with pytest.raises(ConfigurationError, match="GEMLINE_FAILPOINT must be crash_on_token:TOKEN_ID, not"):
        failpoint({VARIABLE: asked})


def test_the_token_kills_the_process_and_no_other_does() -> None:
    program = (
        "from gemline.failpoints import CrashOnToken as C; c = C(7); c.see([6, 8]); print(1, flush=True); c.see([7])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, "1\n")
