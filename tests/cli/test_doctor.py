"""`gemline doctor`: each check by itself, then the command."""

import json
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.commands import gemline
from support.fake_gateway import Fail, FakeGateway, Served
from support.uncapped_worker import uncapped

from gemline.cli.checks import compute, machine, model, software, stack
from gemline.cli.checks.check import Check, Outcome, attempt
from gemline.cli.doctor import doctor
from gemline.errors import ConfigurationError
from gemline_kernels.choose import Choice, choice, choose
from gemline_kernels.cpu.native import NEEDED_CPU_FLAGS, library

SAPPHIRE_RAPIDS = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu avx2 avx512f avx512_bf16 avx512_vnni amx_bf16 amx_tile amx_int8

processor\t: 1
model name\t: another
flags\t\t: fpu
"""


@pytest.fixture(autouse=True)
def choosing_afresh() -> Iterator[None]:
    """What a test pretends of this machine is not what the next one's backend is chosen by."""
    for function in (choice, choose, library):
        function.cache_clear()
    yield
    for function in (choice, choose, library):
        function.cache_clear()


def test_the_cpus_useful_features_are_named() -> None:
    check = machine.cpu(SAPPHIRE_RAPIDS)
    assert "Intel(R) Xeon(R) Platinum 8481C: avx2 avx512f avx512_bf16 avx512_vnni amx amx_bf16 amx_int8" in check.found


@pytest.mark.parametrize("cpuinfo", ["", "garbage", "Features\t: fp asimd bf16\n"])
def test_an_unknown_cpu_is_no_failure(cpuinfo: str) -> None:
    assert machine.cpu(cpuinfo).outcome is not Outcome.FAILURE


def test_a_taken_port_is_a_warning_with_the_option_to_change() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        check = machine.port("--http-port", number)
        assert (check.outcome, check.name) == (Outcome.WARNING, f"port {number}")
        assert "--http-port" in check.advice
    assert machine.port("--http-port", number).outcome is Outcome.OK


def test_a_cache_folder_that_cannot_be_written_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    check = machine.folder(tmp_path / "file" / "cache")
    assert check.outcome is Outcome.FAILURE
    assert "GEMLINE_CACHE" in check.advice
    assert machine.folder(tmp_path / "new" / "cache").outcome is not Outcome.FAILURE


@pytest.mark.parametrize("error", [ConfigurationError("wrong"), RuntimeError("wrong"), ImportError("wrong")])
def test_a_check_that_raises_is_a_failure_in_its_own_words(error: Exception) -> None:
    def look() -> Check:
        raise error

    check = attempt("part", look, "do this")
    assert check.outcome is Outcome.FAILURE
    assert check.found.endswith("wrong")
    assert check.advice == "do this"


def test_here_every_package_is_installed_and_redis_starts() -> None:
    findings = {check.name: check for check in software.checks()}
    assert {name for name, check in findings.items() if check.outcome is Outcome.FAILURE} == set()
    assert {"torch", "ray", "grpcio", "redis-server", "packages"} <= findings.keys()


def named(findings: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in findings}


def test_a_library_that_is_not_built_yet_is_told_and_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path))
    monkeypatch.setattr("gemline_kernels.cpu.native.missing_cpu_flags", lambda: [])
    monkeypatch.setattr("gemline_kernels.cpu.build.find_compiler", lambda: sys.executable)
    findings = named(compute.checks())
    assert "not built" in findings["native library"].found
    assert findings["backend"].found == "native, once it is built"
    assert list(tmp_path.iterdir()) == []


def test_without_a_compiler_the_fallback_is_a_warning_that_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path))
    monkeypatch.setattr("gemline_kernels.cpu.build.cpu_flags", lambda: NEEDED_CPU_FLAGS)
    monkeypatch.setattr("gemline_kernels.cpu.native.cpu_flags", lambda: NEEDED_CPU_FLAGS)
    monkeypatch.setattr("gemline_kernels.choose.cpu_flags", lambda: NEEDED_CPU_FLAGS)
    monkeypatch.setenv("CXX", "no-such-compiler")
    findings = named(compute.checks())
    assert findings["compiler"].outcome is findings["backend"].outcome is Outcome.WARNING
    assert "onednn: the faster native one is not available: no C++ compiler" in findings["backend"].found
    assert findings["self-check"].found == "onednn computes right, within rounding"


def test_a_cpu_without_the_instructions_is_told_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemline_kernels.cpu.native.missing_cpu_flags", lambda: ["avx512_vnni", "avx512f"])
    assert named(compute.checks())["native library"].found == "not for this CPU: it lacks avx512_vnni avx512f"


def test_a_backend_that_computes_wrong_is_a_failure_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemline_kernels.cpu.native.missing_cpu_flags", lambda: ["avx512f"])
    monkeypatch.setattr("gemline_kernels.choose.choice", lambda: Choice(uncapped(), "for this test", False))
    check = named(compute.checks())["self-check"]
    assert check.outcome is Outcome.FAILURE
    assert "attention" in check.found
    assert "do not serve" in check.advice


def test_a_good_checkpoint_passes(tiny_checkpoint: Path) -> None:
    assert [check.outcome for check in model.checks(tiny_checkpoint)] == [Outcome.OK] * 3


def test_a_checkpoint_without_weights_is_told_part_by_part(tmp_path: Path, tiny_checkpoint: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((tiny_checkpoint / name).read_bytes())
    config, weights, tokenizer = model.checks(tmp_path)
    assert (config.outcome, weights.outcome, tokenizer.outcome) == (Outcome.OK, Outcome.FAILURE, Outcome.OK)
    assert "model.safetensors" in weights.found


def test_a_stack_is_asked_for_its_models_and_an_answer(served: Served, gateway: FakeGateway) -> None:
    gateway_check, model_check = stack.checks(served.address, "gk")
    assert "serves gemma" in gateway_check.found
    assert (model_check.name, model_check.outcome) == ("model gemma", Outcome.OK)


def test_a_stack_that_does_not_answer_is_a_failure(served: Served, gateway: FakeGateway) -> None:
    import grpc

    gateway.script.append(Fail(grpc.StatusCode.UNAVAILABLE, "no worker"))
    assert [check.outcome for check in stack.checks(served.address, None)] == [Outcome.OK, Outcome.FAILURE]
    gateway.models.clear()
    assert [check.outcome for check in stack.checks(served.address, None)] == [Outcome.FAILURE]
    assert [check.outcome for check in stack.checks("127.0.0.1:1", None)] == [Outcome.FAILURE]


def test_the_command_prints_a_table_and_ends_well_when_nothing_fails(
    home: Path,
    served: Served,
    tiny_checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(home))
    doctor(model=tiny_checkpoint, address=served.address)
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].startswith("ok    python")
    assert any("model gemma" in row for row in rows)


def test_json_is_an_array_and_a_failure_is_exit_code_1(tmp_path: Path) -> None:
    done = gemline("doctor", "--json", "--model", str(tmp_path / "nowhere"), home=tmp_path)
    assert done.returncode == 1
    findings = json.loads(done.stdout)
    assert {"name", "outcome", "found", "advice"} == findings[0].keys()
    assert "failure" in {finding["outcome"] for finding in findings}
