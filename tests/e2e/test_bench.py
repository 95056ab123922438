"""`gemline bench` against the whole platform."""

import json
from pathlib import Path

import pytest
from support.commands import gemline
from support.stack import Running

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("shared-stacks")]


@pytest.mark.parametrize(
    "load", [["--num-requests", "4"], ["--workload", "session", "--sessions", "2", "--turns", "2"]]
)
def test_every_request_is_answered_in_full_length(split_stack: Running, tmp_path: Path, load: list[str]) -> None:
    (tmp_path / "ready.json").write_text(json.dumps(split_stack.ready))
    path = tmp_path / "run.json"
    sizes = ["--prompt-tokens", "20-30", "--output-tokens", "8", "--ignore-eos"]
    done = gemline("bench", *load, *sizes, "--json", str(path), home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    summary = json.loads(path.read_text())["summary"]
    assert (summary["num_ok"], summary["output_tokens"], summary["counted_by_server"]) == (4, 32, True)
