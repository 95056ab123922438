"""`gemline bench` as a person runs it, against somebody else's server."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import gemline
from support.openai_server import KEY, ForeignServer


@pytest.fixture(scope="module")
def foreign() -> Iterator[ForeignServer]:
    with ForeignServer() as server:
        yield server


def test_a_table_and_json_tell_the_run_and_not_the_key(tmp_path: Path, foreign: ForeignServer) -> None:
    path = tmp_path / "run.json"
    load = ("--num-requests", "6", "--concurrency", "2", "--prompt-tokens", "8-9", "--output-tokens", "4")
    outputs = ("--goodput", "ttft:60000", "itl:60000", "--json", str(path))
    done = gemline("bench", "--url", f"{foreign.url}/v1", "--api-key", KEY, *load, *outputs, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {line[:24].strip(): line.split()[-1] for line in done.stdout.splitlines() if line}
    assert (rows["requests"], rows["failed"], rows["output tokens"], rows["good requests"]) == ("6", "0", "24", "6")
    whole = json.loads(path.read_text())
    assert KEY not in path.read_text()
    assert whole["model"] == "some-model"
    assert whole["version"]
    assert whole["date"]
    assert whole["command"][:2] == ["gemline", "bench"]
    assert whole["summary"]["num_ok"] == len(whole["requests"]) == 6
    assert whole["summary"]["output_tokens_per_s"] > 0
    assert set(whole["summary"]["itl_ms"]) == {"mean", "p50", "p90", "p99", "max"}


def test_the_key_is_not_in_the_command_however_it_is_given(tmp_path: Path, foreign: ForeignServer) -> None:
    path = tmp_path / "run.json"
    load = ("--url", foreign.url, "--num-requests", "1", "--json", str(path))
    assert gemline("bench", f"--api-key={KEY}", *load, home=tmp_path).returncode == 0
    assert json.loads(path.read_text())["command"][2] == "--api-key=..."
    assert KEY not in path.read_text()


def test_a_poisson_run_of_chats_ends(tmp_path: Path, foreign: ForeignServer) -> None:
    load = ("--rate", "200", "--num-requests", "5", "--endpoint", "chat")
    done = gemline("bench", "--url", foreign.url, *load, home=tmp_path, GEMLINE_API_KEY=KEY)
    assert (done.returncode, done.stderr) == (0, "")
    assert foreign.paths[-1] == "/v1/chat/completions"


def test_the_ready_file_gives_url_and_key(tmp_path: Path, foreign: ForeignServer) -> None:
    ready = {"http": foreign.url, "grpc": "127.0.0.1:1", "api_key": KEY, "model": "some-model"}
    (tmp_path / "ready.json").write_text(json.dumps(ready))
    assert gemline("bench", "--num-requests", "1", home=tmp_path).returncode == 0
    assert gemline("bench", "--num-requests", "1", "--url", f"{foreign.url}/v1", home=tmp_path).returncode == 0
    ready["http"] = "http://127.0.0.1:1"
    (tmp_path / "ready.json").write_text(json.dumps(ready))
    other = gemline("bench", "--num-requests", "1", "--url", foreign.url, home=tmp_path)
    assert "401" in other.stderr


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--url", "http://127.0.0.1:1"], "127.0.0.1:1 cannot be reached"),
        ([], "--url"),
        (["--prompt-tokens", "9-8"], "--prompt-tokens"),
        (["--output-tokens", "0", "--url", "http://127.0.0.1:1"], "--output-tokens"),
        (["--concurrency", "0"], "--concurrency"),
        (["--endpoint", "edits"], "--endpoint"),
        (["--goodput", "speed:1"], "--goodput"),
        (["ttft:1"], "ttft:1"),
        (["--json", "nowhere/run.json"], "--json"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(tmp_path: Path, arguments: list[str], named: str) -> None:
    done = gemline("bench", *arguments, home=tmp_path)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert named in done.stderr


def test_a_run_without_an_answer_fails_and_tells_why(tmp_path: Path) -> None:
    with ForeignServer(fail_every=1) as foreign:
        done = gemline("bench", "--url", foreign.url, "--api-key", KEY, "--num-requests", "3", home=tmp_path)
    assert done.returncode == 1
    assert "3 x HTTP 503: too busy" in done.stdout
    assert done.stderr == "gemline: none of the 3 requests was answered\n"


def test_a_plot_is_made_or_refused_before_the_run(tmp_path: Path, foreign: ForeignServer) -> None:
    path = tmp_path / "run.png"
    num_before = len(foreign.bodies)
    load = ("--url", foreign.url, "--api-key", KEY, "--num-requests", "3")
    done = gemline("bench", *load, "--plot", str(path), home=tmp_path)
    if importlib.util.find_spec("matplotlib"):
        assert path.read_bytes().startswith(b"\x89PNG")
    else:
        assert "matplotlib" in done.stderr
        assert (done.returncode, len(foreign.bodies)) == (1, num_before)
