"""The command line as a whole: help, exit codes, errors in one line."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import gemline

from gemline import __version__

COMMANDS = [
    *("up", "chat", "generate", "bench", "doctor", "worker", "gateway", "distill"),
    *("tenant", "project", "key", "usage", "audit", "prefix", "session"),
]


def test_help_names_every_command(tmp_path: Path) -> None:
    done = gemline("--help", home=tmp_path)
    assert done.returncode == 0
    words = done.stdout.split()
    assert all(command in words for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(tmp_path: Path, command: str) -> None:
    done = gemline(command, "--help", home=tmp_path)
    assert done.returncode == 0
    assert f"gemline {command}" in done.stdout


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    assert gemline("--version", home=tmp_path).stdout == f"gemline {__version__}\n"


def test_help_imports_nothing_heavy() -> None:
    heavy = {"torch", "ray", "grpc", "redis", "fastapi", "uvicorn", "numpy", "tokenizers", "opentelemetry"}
    program = f"import sys; from gemline.cli.main import app; app(); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("arguments", [["nonsense"], ["generate", "--nonsense"], ["generate", "--max-tokens", "many"]])
def test_a_wrong_call_exits_with_2(tmp_path: Path, arguments: list[str]) -> None:
    done = gemline(*arguments, home=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_an_error_is_one_line_and_exit_code_1(tmp_path: Path) -> None:
    done = gemline("generate", "hi", home=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"gemline: no stack is ready on this machine ({tmp_path / 'ready.json'} is missing): "
        "run `gemline up`, or give --address HOST:PORT\n"
    )


def test_an_unexpected_error_is_one_line_too_until_asked_for_more(tmp_path: Path) -> None:
    broken = "import gemline.cli.main as m\ndef app(prog_name):\n    1 / 0\nm.app = lambda: app\nm.main()"
    command = [sys.executable, "-c", broken]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("gemline: unexpected ZeroDivisionError")
    assert len(done.stderr.splitlines()) == 1
    env = {"GEMLINE_TRACEBACK": "1"}
    assert "Traceback" in subprocess.run(command, capture_output=True, text=True, env=env, check=False).stderr
