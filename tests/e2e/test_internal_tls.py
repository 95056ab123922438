"""`gemline up` with TLS between its processes, as a platform team runs it: one secret in a folder, renewed in place."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from support.certificates import Authority, options, renew
from support.decode_workers import LIMIT_S, leases
from support.processes import ports
from support.sse import complete
from support.stack import Running, start_stack

from gemline.cluster.records import Role
from gemline.rpc.tls_files import TlsFiles

pytestmark = pytest.mark.xdist_group("shared-stacks")

NUM_TOKENS = 400


class Secret(NamedTuple):
    """As cert-manager's, mounted as a folder."""

    folder: Path

    @property
    def files(self) -> TlsFiles:
        return TlsFiles(self.folder / "tls.crt", self.folder / "tls.key", self.folder / "ca.crt")

    def issue(self, authority_name: str) -> None:
        """Its contents from now on: by a CA that has signed nothing else."""
        self.folder.mkdir(exist_ok=True)
        new = Authority(self.folder.parent, authority_name).issue(f"of-{authority_name}")
        if not self.files.certificate.exists():
            for file, source in zip(self.files, new, strict=True):
                assert file is not None
                assert source is not None
                shutil.copy(source, file)
        renew(self.files, new)


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Secret:
    secret = Secret(tmp_path_factory.mktemp("mounted") / "secret")
    secret.issue("first")
    return secret


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory, secret: Secret) -> Iterator[Running]:
    kind = ("--runner", "process", "--dtype", "float32", "--remote-prefill", "always", "--first-prompt", "")
    running = start_stack(tmp_path_factory.mktemp("tls"), *kind, *options(secret.files))
    yield running
    running.stop()


def answer(running: Running, num_tokens: int = 32) -> tuple[str, str | None, int]:
    return complete(running, prompt="Once upon a time", max_tokens=num_tokens, temperature=0, ignore_eos=True).answer


def status(address: str, credentials: grpc.ChannelCredentials | None) -> str:
    """What the health service of a worker says to whoever comes with these credentials."""
    renamed = (("grpc.ssl_target_name_override", "gemline-internal"),)
    channel = grpc.secure_channel(address, credentials, renamed) if credentials else grpc.insecure_channel(address)
    with channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=HealthCheckRequest.SerializeToString,
            response_deserializer=HealthCheckResponse.FromString,
        )
        try:
            return HealthCheckResponse.ServingStatus.Name(check(HealthCheckRequest(), timeout=5).status)
        except grpc.RpcError as error:
            return str(error.code().name)


@pytest.mark.slow
def test_it_answers_as_without_tls_and_only_who_shows_our_certificate(
    stack: Running, split_stack: Running, secret: Secret
) -> None:
    assert answer(stack) == answer(split_stack)
    pem = secret.files.read()
    ours, anonymous = (
        grpc.ssl_channel_credentials(pem.ca, pem.key, pem.certificate),
        grpc.ssl_channel_credentials(pem.ca),
    )
    workers = [process for process in stack.ready["processes"] if process["role"] != "gateway"]
    assert len(workers) == 3
    for process in workers:
        address, metrics = process["address"], process["metrics"]
        assert status(address, ours) == "SERVING"
        assert status(address, None) == status(address, anonymous) == "UNAVAILABLE"
        assert {f"127.0.0.1:{port}" for port in ports(process["pid"])} == {address, metrics}


@pytest.mark.slow
def test_a_renewal_by_another_ca_and_a_worker_that_starts_anew_break_no_stream(
    stack: Running, split_stack: Running, secret: Secret
) -> None:
    def renew_and_kill(number: int) -> None:
        if number == 5:
            secret.issue("second")
            os.kill(stack.pids("prefill")[0], signal.SIGKILL)

    request: dict[str, Any] = {
        "prompt": "Once upon a time",
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
    }
    told = complete(stack, renew_and_kill, **request)
    assert told.answer == complete(split_stack, **request).answer
    assert told.times_s[-1] - told.times_s[4] > 0.1  # it had not been over by then
    limit_s = time.monotonic() + LIMIT_S
    while [worker.pid in stack.pids("prefill") for worker in leases(stack.ready["redis_url"], Role.PREFILL)] != [False]:
        assert time.monotonic() < limit_s, "the prefill worker has not been started again, or its old lease stays"
        time.sleep(0.1)
    time.sleep(0.5)  # for the decode worker to hear of it
    assert answer(stack) == answer(split_stack)
    log = (Path(stack.ready["log_dir"]) / "decode-0.log").read_text()
    assert "was read again" in log
    assert "prefilling here" not in log  # the decode worker reached both


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [("gateway",), ("worker", "decode", "--model-dir", "m", "--served-model-name", "n")]
)
def test_a_process_names_the_file_that_it_cannot_use_and_does_not_serve(
    command: tuple[str, ...], secret: Secret, redis_url: str, tmp_path: Path
) -> None:
    wrong = secret.files._replace(key=tmp_path / "none.key")
    arguments = [sys.executable, "-m", "gemline.cli.main", *command, "--redis-url", redis_url, *options(wrong)]
    ended = subprocess.run(arguments, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "none.key cannot be read: No such file" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.ray
def test_replicas_of_ray_have_the_certificate_too(
    split_stack: Running, secret: Secret, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(secret.folder)
    relative = TlsFiles(*(Path(file.name) for file in secret.files if file is not None))
    running = start_stack(tmp_path, "--runner", "ray", "--dtype", "float32", "--first-prompt", "", *options(relative))
    try:
        assert answer(running) == answer(split_stack)
        assert {status(it["address"], None) for it in running.ready["processes"] if it["role"] != "gateway"} == {
            "UNAVAILABLE"
        }
    finally:
        assert running.stop() == 0
