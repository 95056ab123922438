"""The README's Python blocks run as they stand, against a real stack."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.stack import Running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_the_block_runs(code: str, split_stack: Running) -> None:
    environment = {
        "GEMLINE_URL": split_stack.base_url,
        "GEMLINE_GRPC": split_stack.ready["grpc"],
        "GEMLINE_API_KEY": split_stack.ready["api_key"],
    }
    command = [sys.executable, "-W", "error::SyntaxWarning", "-c", code]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ, **environment}
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def test_there_are_blocks_to_run() -> None:
    assert len(BLOCKS) >= 2
