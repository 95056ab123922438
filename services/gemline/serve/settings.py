"""Every setting of a process, frozen, and the one place where defaults are decided. No I/O but counting the cores."""

import os
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self, get_args

from gemline import cores
from gemline.cluster.records import Role
from gemline.engine.options import KvDtype, Quantization
from gemline.errors import ConfigurationError
from gemline.rpc.tls_files import TlsFiles, internal_files
from gemline.serve.autoscaling import Scaling
from gemline.serve.gpus import share_of_gpu, visible_gpus

Runner = Literal["ray", "process"]
Topology = Literal["split", "colocated"]
SystemPrompt = Literal["refuse", "prepend"]
RemotePrefill = Literal["auto", "always", "never"]
KvTransport = Literal["auto", "shm", "socket", "grpc", "nixl"]
Placement = Literal["STRICT_PACK", "PACK"]  # of ranks on Ray: all on one node, or on as few as can be

REDIS_URL_VARIABLE = "GEMLINE_REDIS_URL"


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One worker process. Travels to it as a plain dict (Ray) or as command-line flags (`gemline worker`)."""

    role: str
    model_dir: str
    served_model_name: str
    redis_url: str
    bind: str = "127.0.0.1"
    advertise: str | None = None  # the address others reach it by; default: bind
    port: int = 0
    metrics_port: int = 0
    dtype: str = "auto"
    quantization: Quantization = "none"
    kv_cache_dtype: KvDtype = "auto"
    kv_blocks: int | None = None  # None: from free memory
    block_size: int = 0  # 0, here and in the next two: what suits the device
    max_batch_tokens: int = 0
    max_running: int = 0
    prefix_cache: bool = True
    threads: int | None = None  # None: torch's own choice
    gpu_share: float = 1.0  # of one GPU's memory
    tensor_parallel: int = 1  # GPUs, or processes, that an engine is divided among
    tensor_parallel_placement: Placement | None = None  # of these on Ray, each with a bundle; None: all in one place
    prefill: RemotePrefill = "auto"  # by prefill workers; decode workers only
    kv_transport: KvTransport = "auto"
    system_prompt: SystemPrompt = "refuse"  # tokenization workers only
    drain_timeout_s: float = 30.0
    release: str = ""  # that it comes with; empty: the name of its cluster where KubeRay runs it
    internal_tls_certificate: str | None = None  # PEM files: all three, or none, and then internal calls go in clear
    internal_tls_key: str | None = None
    internal_tls_ca: str | None = None

    def __post_init__(self) -> None:
        _ = self.internal_tls  # all three files or none
        if self.role not in (names := [role.value for role in Role]):
            raise ConfigurationError(f"worker role {self.role!r} is none of {', '.join(names)}")
        if self.tensor_parallel_placement not in (None, *(allowed := get_args(Placement))):
            raise ConfigurationError(
                f"tensor_parallel_placement must be one of {', '.join(allowed)}, is {self.tensor_parallel_placement!r}"
            )
        if self.has_placed_ranks and self.tensor_parallel_placement == "PACK" and self.internal_tls is not None:
            raise ConfigurationError(
                f"tensor_parallel_placement PACK: {self.tensor_parallel} ranks on several nodes talk in clear; with"
                " internal TLS: STRICT_PACK",
                param="tensor_parallel_placement",
            )

    @property
    def has_engine(self) -> bool:
        """Whether it computes with the model."""
        return self.role != Role.TOKENIZATION.value

    @property
    def num_gpus(self) -> float:
        """That its own process takes, where there are any: whole ones, or a share of one."""
        if not self.has_engine:
            return 0
        if self.tensor_parallel == 1:
            return self.gpu_share
        return 1.0 if self.has_placed_ranks else float(self.tensor_parallel)

    @property
    def has_placed_ranks(self) -> bool:
        """Whether Ray places each of several ranks."""
        return self.has_engine and self.tensor_parallel > 1 and self.tensor_parallel_placement is not None

    @property
    def internal_tls(self) -> TlsFiles | None:
        """Raises ConfigurationError when only some of the files are given."""
        return internal_files(self.internal_tls_certificate, self.internal_tls_key, self.internal_tls_ca)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` reads them back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The settings that `to_dict` gave, or some of them. Raises ConfigurationError for unknown and missing ones."""
        known = {each.name: each for each in fields(cls)}
        if unknown := sorted(values.keys() - known.keys()):
            raise ConfigurationError(f"worker settings have no {', '.join(unknown)}; there are {', '.join(known)}")
        if missing := [name for name, each in known.items() if each.default is MISSING and name not in values]:
            raise ConfigurationError(f"worker settings lack {', '.join(missing)}")
        return cls(**values)

    def argv(self) -> list[str]:
        """Arguments of `gemline worker` that give these settings; defaults are left out.

        The Redis URL, which may hold a password, travels in GEMLINE_REDIS_URL: anybody may read a command line.
        """
        flags = [
            part
            for each in fields(self)
            if each.name not in ("role", "redis_url") and (value := getattr(self, each.name)) != each.default
            for part in _flag(each.name.replace("_", "-"), value)
        ]
        return [self.role, *flags]


@dataclass(frozen=True, slots=True)
class StackSettings:
    """Everything on one machine: what `gemline up` starts."""

    model: str | None = None  # a directory, a Hugging Face id, or None for the demo checkpoint
    runner: Runner = "ray"
    topology: Topology = "split"
    num_tokenization: int = 1
    num_prefill: int = 1
    num_decode: int = 1
    max_prefill: int = 0  # 0, here and below: as many as at the start; more: it scales, on Ray
    max_decode: int = 0
    ttft_slo_s: float = 2.0  # what scaling is to hold, 95th percentiles at the workers
    itl_slo_s: float = 0.2
    scale_up_after_s: float = 5.0
    scale_down_after_s: float = 60.0
    dtype: str = "auto"
    quantization: Quantization = "none"
    kv_cache_dtype: KvDtype = "auto"
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 50051
    admin_port: int | None = None  # of the admin API, on loopback; None: 8081 if there is an admin key
    admin_key: str = field(default="", repr=False)  # empty: made if there is an admin port
    share_without_redis: float = 0.0  # of each limit, while Redis is away
    redis_url: str | None = None  # None: an embedded Redis
    keys_file: Path | None = None  # None: a key for tenant "local" is made
    served_model_name: str | None = None  # None: from the model
    kv_blocks: int | None = None
    max_running: int = 0  # 0, here and below: what suits the device
    max_batch_tokens: int = 0
    prefix_cache: bool = True
    threads: int | None = None  # None: the cores, shared out among the engines
    gpu_share: float | None = None  # None: the GPUs, shared out among the engines
    tensor_parallel: int = 1  # of each engine
    prefill_tensor_parallel: int | None = None  # of prefill workers' ones; None: the same
    tensor_parallel_placement: Placement | None = None  # of ranks on Ray; None: STRICT_PACK
    system_prompt: SystemPrompt = "refuse"
    remote_prefill: RemotePrefill = "auto"
    kv_transport: KvTransport = "auto"
    internal_tls_certificate: Path | None = None  # PEM files, between the processes: all three or none
    internal_tls_key: Path | None = None
    internal_tls_ca: Path | None = None
    ready_file: Path | None = None
    start_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        internal_files(self.internal_tls_certificate, self.internal_tls_key, self.internal_tls_ca)
        least = {"num_tokenization": 1, "num_decode": 1, "num_prefill": 0 if self.topology == "colocated" else 1}
        for name, floor in least.items():
            if (given := getattr(self, name)) < floor:
                flag = f"--{name.removeprefix('num_')}"
                raise ConfigurationError(f"{flag} {given}: at least {floor} with --topology {self.topology}")
        if self.scaling and self.runner != "ray":
            role = next(iter(self.scaling)).value
            raise ConfigurationError(f"--{role} with a range needs --runner ray, is {self.runner}: nobody else scales")
        if self.tensor_parallel_placement is not None and self.runner != "ray":
            raise ConfigurationError(
                f"--tensor-parallel-placement {self.tensor_parallel_placement} needs --runner ray, is {self.runner}"
            )

    @property
    def counts(self) -> dict[Role, int]:
        """Workers to start, by role; a colocated decode worker prefills for itself."""
        num_prefill = 0 if self.topology == "colocated" else self.num_prefill
        return {Role.TOKENIZATION: self.num_tokenization, Role.PREFILL: num_prefill, Role.DECODE: self.num_decode}

    def num_ranks(self, role: Role) -> int:
        """That an engine of that role is divided among."""
        own = self.prefill_tensor_parallel if role is Role.PREFILL else None
        return own or self.tensor_parallel

    @property
    def placement(self) -> Placement | None:
        """Of an engine's ranks by Ray; None where nobody places them."""
        return (self.tensor_parallel_placement or "STRICT_PACK") if self.runner == "ray" else None

    @property
    def scaling(self) -> dict[Role, Scaling]:
        """Of the roles that have a range. Raises ConfigurationError for one that is none."""
        ranges = {Role.PREFILL: (self.num_prefill, self.max_prefill), Role.DECODE: (self.num_decode, self.max_decode)}
        return {
            role: Scaling(
                role.value,
                least,
                most,
                self.ttft_slo_s,
                self.itl_slo_s,
                prefills=self.topology == "colocated",
                up_after_s=self.scale_up_after_s,
                down_after_s=self.scale_down_after_s,
            )
            for role, (least, most) in ranges.items()
            if most and self.counts[role]
        }

    def worker(self, role: Role, *, model_dir: Path, served_model_name: str, redis_url: str) -> WorkerSettings:
        """Settings of a worker of this stack."""
        return WorkerSettings(
            role=role.value,
            model_dir=str(model_dir),
            served_model_name=served_model_name,
            redis_url=redis_url,
            bind=self.host,
            dtype=self.dtype,
            quantization=self.quantization,
            kv_cache_dtype=self.kv_cache_dtype,
            kv_blocks=self.kv_blocks,
            max_batch_tokens=self.max_batch_tokens,
            max_running=self.max_running,
            prefix_cache=self.prefix_cache,
            threads=self.threads,
            gpu_share=1.0 if self.gpu_share is None else self.gpu_share,
            tensor_parallel=self.num_ranks(role),
            tensor_parallel_placement=self.placement,
            prefill="never" if self.topology == "colocated" else self.remote_prefill,
            kv_transport=self.kv_transport,
            system_prompt=self.system_prompt,
            internal_tls_certificate=_absolute(self.internal_tls_certificate),
            internal_tls_key=_absolute(self.internal_tls_key),
            internal_tls_ca=_absolute(self.internal_tls_ca),
        )


_ENGINE_ROLES = (Role.PREFILL, Role.DECODE)


def resolve(settings: StackSettings, num_cores: int | None = None, num_gpus: int | None = None) -> StackSettings:
    """The settings with nothing left to choose: cores and GPUs shared out among prefill and decode workers, as many as
    there may ever be.
    """
    most = {role: settings.scaling[role].max_replicas for role in settings.scaling}
    counts = settings.counts | most
    num_engines = sum(counts[role] for role in _ENGINE_ROLES)
    num_ranks = sum(counts[role] * settings.num_ranks(role) for role in _ENGINE_ROLES)
    if num_gpus is None:
        num_gpus = len(visible_gpus(os.environ))
    return replace(
        settings,
        threads=settings.threads or max(1, (num_cores or cores.num_cores()) // num_engines),
        gpu_share=settings.gpu_share or share_of_gpu(num_ranks, num_gpus),
    )


def _absolute(file: Path | None) -> str | None:
    """As a replica of Ray finds it, which runs in a folder of its own; links stay, for a renewal may change them."""
    return None if file is None else str(file.absolute())


def _flag(name: str, value: object) -> tuple[str, ...]:
    if isinstance(value, bool):
        return (f"--{name}" if value else f"--no-{name}",)
    return (f"--{name}", str(value))
