"""Settings: defaults are decided once, and survive the journey to a process."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from gemline.cli.worker import worker
from gemline.cluster.records import Role
from gemline.errors import ConfigurationError
from gemline.rpc.tls_files import TlsFiles
from gemline.serve.autoscaling import Scaling
from gemline.serve.settings import StackSettings, WorkerSettings, resolve

FILES = {f"internal_tls_{name}": f"/secret/{name}" for name in ("certificate", "key", "ca")}
words = st.text("abcdefgh/.-", min_size=1, max_size=12).filter(lambda text: not text.startswith("-"))
worker_settings = st.builds(
    lambda files, **others: WorkerSettings(**others, **files),
    st.sampled_from([{}, FILES]),
    role=st.sampled_from([role.value for role in Role]),
    model_dir=words,
    served_model_name=words,
    redis_url=st.just("redis://127.0.0.1:1/0"),
    bind=words,
    advertise=st.none() | words,
    port=st.integers(0, 65535),
    metrics_port=st.integers(0, 65535),
    dtype=st.sampled_from(["auto", "float32", "bfloat16"]),
    quantization=st.sampled_from(["none", "int8", "int4", "fp8"]),
    kv_cache_dtype=st.sampled_from(["auto", "fp8"]),
    kv_blocks=st.none() | st.integers(1, 10**6),
    block_size=st.integers(1, 64),
    max_batch_tokens=st.integers(1, 8192),
    max_running=st.integers(1, 512),
    prefix_cache=st.booleans(),
    threads=st.none() | st.integers(1, 64),
    gpu_share=st.floats(0.001, 1.0),
    tensor_parallel=st.integers(1, 8),
    prefill=st.sampled_from(["auto", "always", "never"]),
    kv_transport=st.sampled_from(["auto", "shm", "socket", "grpc"]),
    system_prompt=st.sampled_from(["refuse", "prepend"]),
    drain_timeout_s=st.floats(0, 600),
    release=st.just("") | words,
)


@given(worker_settings)
def test_worker_settings_survive_the_command_line(settings: WorkerSettings) -> None:
    app = typer.Typer()
    app.command()(worker)
    context = typer.main.get_command(app).make_context("worker", [*settings.argv(), "--redis-url", settings.redis_url])
    assert WorkerSettings(**context.params) == settings


@given(worker_settings)
def test_worker_settings_survive_a_plain_dict(settings: WorkerSettings) -> None:
    assert WorkerSettings.from_dict(settings.to_dict()) == settings


def test_every_engine_of_a_stack_computes_with_the_stacks_precision() -> None:
    stack = StackSettings(dtype="bfloat16", quantization="int4", kv_cache_dtype="fp8")
    for role in (Role.PREFILL, Role.DECODE):
        worker = stack.worker(role, model_dir=Path("m"), served_model_name="n", redis_url="redis://h")
        assert (worker.dtype, worker.quantization, worker.kv_cache_dtype) == ("bfloat16", "int4", "fp8")


def test_every_worker_of_a_stack_has_its_internal_certificate_by_a_path_that_holds_in_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ca").symlink_to("elsewhere")  # as in a mounted secret: what it leads to changes
    files: dict[str, Any] = {name: Path(Path(file).name) for name, file in FILES.items()}
    stack = StackSettings(**files)
    for role in Role:
        worker = stack.worker(role, model_dir=Path("m"), served_model_name="n", redis_url="redis://h")
        assert worker.internal_tls == TlsFiles(tmp_path / "certificate", tmp_path / "key", tmp_path / "ca")


@pytest.mark.parametrize("missing", FILES)
def test_internal_files_are_given_together(missing: str) -> None:
    some: dict[str, Any] = {name: file for name, file in FILES.items() if name != missing}
    for make in (lambda: StackSettings(**some), lambda: WorkerSettings("decode", "m", "n", "redis://h", **some)):
        with pytest.raises(ConfigurationError, match=f"go together; missing: {missing}$"):
            make()


def test_the_redis_url_stays_out_of_the_command_line() -> None:
    settings = WorkerSettings("decode", "m", "n", "redis://:secret@host:6379/0")
    assert not any("secret" in part for part in settings.argv())


def test_the_cores_are_shared_out_among_the_engines() -> None:
    assert resolve(StackSettings(), num_cores=2).threads == 1
    assert resolve(StackSettings(topology="colocated"), num_cores=2).threads == 2
    assert resolve(StackSettings(num_prefill=2, num_decode=2), num_cores=2).threads == 1
    assert resolve(StackSettings(threads=7), num_cores=2).threads == 7


def test_gpus_are_shared_out_among_the_ranks() -> None:
    """A process takes all of its engine's; where Ray places each rank, a rank takes one."""
    stack = StackSettings(runner="process", tensor_parallel=4, prefill_tensor_parallel=2, num_prefill=2)
    placed = replace(stack, runner="ray")
    of_processes, of_ray = ({role: it.num_gpus for role, it in workers_of(one).items()} for one in (stack, placed))
    assert of_processes == {Role.TOKENIZATION: 0, Role.PREFILL: 2, Role.DECODE: 4}
    assert of_ray == {Role.TOKENIZATION: 0, Role.PREFILL: 1, Role.DECODE: 1}
    assert resolve(stack, num_gpus=8).gpu_share == 1
    assert resolve(stack, num_gpus=4).gpu_share == 0.5


def workers_of(stack: StackSettings) -> dict[Role, WorkerSettings]:
    told: dict[str, Any] = {"model_dir": Path("m"), "served_model_name": "n", "redis_url": "redis://h"}
    return {role: stack.worker(role, **told) for role in Role}


def test_ranks_are_kept_on_one_node_unless_one_says_otherwise() -> None:
    assert workers_of(StackSettings(tensor_parallel=2))[Role.DECODE].tensor_parallel_placement == "STRICT_PACK"
    packed = StackSettings(tensor_parallel=2, tensor_parallel_placement="PACK")
    assert workers_of(packed)[Role.DECODE].tensor_parallel_placement == "PACK"
    assert not workers_of(StackSettings())[Role.DECODE].has_placed_ranks
    assert not workers_of(packed)[Role.TOKENIZATION].has_placed_ranks
    with pytest.raises(ConfigurationError, match="--tensor-parallel-placement PACK needs --runner ray, is process"):
        StackSettings(runner="process", tensor_parallel_placement="PACK")
    told = {"role": "decode", "model_dir": "m", "served_model_name": "n", "redis_url": "redis://h"}
    with pytest.raises(ConfigurationError, match="must be one of STRICT_PACK, PACK, is 'SPREAD'"):
        WorkerSettings.from_dict(told | {"tensor_parallel_placement": "SPREAD"})


def test_ranks_that_may_be_on_several_nodes_are_refused_beside_tls_for_they_talk_in_clear() -> None:
    tls = {f"internal_tls_{name}": f"/tls/{name}" for name in ("certificate", "key", "ca")}
    told = {"role": "decode", "model_dir": "m", "served_model_name": "n", "redis_url": "redis://h"} | tls
    packed = told | {"tensor_parallel_placement": "PACK"}
    with pytest.raises(ConfigurationError, match=r"PACK: 2 ranks on several nodes .* with internal TLS: STRICT_PACK"):
        WorkerSettings.from_dict(packed | {"tensor_parallel": 2})
    WorkerSettings.from_dict(packed)  # one rank talks to nobody
    WorkerSettings.from_dict(packed | {"tensor_parallel": 2, "role": "tokenization"})
    WorkerSettings.from_dict(told | {"tensor_parallel": 2, "tensor_parallel_placement": "STRICT_PACK"})


def test_cores_are_kept_for_engines_that_may_come() -> None:
    assert resolve(StackSettings(num_decode=1, max_decode=3), num_cores=8).threads == 2


def test_a_stack_scales_only_the_roles_that_have_a_range() -> None:
    assert StackSettings().scaling == {}
    scaling = StackSettings(num_decode=1, max_decode=3, itl_slo_s=0.3).scaling
    assert scaling == {Role.DECODE: Scaling("decode", 1, 3, itl_slo_s=0.3)}
    colocated = StackSettings(topology="colocated", max_prefill=3, max_decode=3)
    assert {role: it.prefills for role, it in colocated.scaling.items()} == {Role.DECODE: True}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_decode": 3, "max_decode": 2}, "decode workers 3-2"),
        ({"max_prefill": 2, "runner": "process"}, "--prefill with a range needs --runner ray, is process"),
        ({"max_decode": 2, "itl_slo_s": 0.0}, "itl_slo_s is 0.0"),
    ],
)
def test_a_range_that_cannot_be_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        StackSettings(**options)


def test_a_colocated_stack_starts_no_prefill_worker() -> None:
    assert StackSettings(topology="colocated", num_prefill=3).counts[Role.PREFILL] == 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_decode": 0}, "--decode 0: at least 1"),
        ({"num_tokenization": 0}, "--tokenization 0: at least 1"),
        ({"num_prefill": 0}, "--prefill 0: at least 1"),
    ],
)
def test_too_few_workers_are_refused_by_their_flag(options: dict[str, int], words: str) -> None:
    with pytest.raises(ConfigurationError, match=words):
        StackSettings(**options)  # type: ignore[arg-type]  # each is an int field


def test_an_unknown_role_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigurationError, match="tokenization, prefill, decode"):
        WorkerSettings("router", "m", "n", "redis://127.0.0.1")
