"""The README's commands for operators work as they stand."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gemline.cli.main import app

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```sh\n(.*?)```", README.read_text(), re.DOTALL)
LINES = [line for block in BLOCKS for line in block.splitlines() if line.startswith("gemline ")]


def test_the_commands_work_one_after_the_other(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLINE_REDIS_URL", redis_url)
    assert len(LINES) >= 8
    for line in LINES:
        done = CliRunner().invoke(app(), shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output)
        assert done.output, line
