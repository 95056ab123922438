"""From settings to a worker in its host: what a bare process and a Ray replica both run."""

import asyncio
import os
from pathlib import Path
from typing import TYPE_CHECKING

from gemline.cluster.records import Role
from gemline.host import HostSettings, Worker, WorkerHost, run_until_signal
from gemline.logs import setup_logging
from gemline.serve.openmp import limit_spinning
from gemline.serve.settings import WorkerSettings

if TYPE_CHECKING:
    from gemline.rank_group import Starter

_CLUSTER = "RAY_CLUSTER_NAME"  # that KubeRay tells every container of its cluster


def build_worker(settings: WorkerSettings, starter: "Starter | None" = None) -> Worker:
    """The worker of that role, not started. Torch is imported only for those that have an engine.

    `starter`: of an engine's other ranks; None: they are child processes.
    """
    model_dir = Path(settings.model_dir)
    if settings.role == Role.TOKENIZATION.value:
        from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker

        return TokenizationWorker(
            TokenizationOptions(model_dir, settings.served_model_name, system_prompt=settings.system_prompt)
        )
    limit_spinning()
    from gemline.engine.options import EngineOptions

    engine = EngineOptions(
        dtype=settings.dtype,
        quantization=settings.quantization,
        kv_dtype=settings.kv_cache_dtype,
        num_kv_blocks=settings.kv_blocks,
        block_size=settings.block_size,
        max_batch_tokens=settings.max_batch_tokens,
        max_running=settings.max_running,
        prefix_cache=settings.prefix_cache,
        num_threads=settings.threads,
        gpu_share=settings.gpu_share,
        tensor_parallel=settings.tensor_parallel,
    )
    if settings.role == Role.PREFILL.value:
        from gemline.prefill.worker import PrefillOptions, PrefillWorker

        return PrefillWorker(
            PrefillOptions(
                model_dir,
                settings.served_model_name,
                engine,
                kv_transport=settings.kv_transport,
                kv_bind=settings.bind,
                starter=starter,
            )
        )
    from gemline.decode.worker import DecodeOptions, DecodeWorker

    return DecodeWorker(
        DecodeOptions(
            model_dir,
            settings.served_model_name,
            engine,
            prefill=settings.prefill,
            kv_transport=settings.kv_transport,
            starter=starter,
        )
    )


def build_host(settings: WorkerSettings, starter: "Starter | None" = None) -> WorkerHost:
    """The worker with its gRPC server, lease and metrics, not started."""
    return WorkerHost(
        build_worker(settings, starter),
        HostSettings(
            redis_url=settings.redis_url,
            bind=settings.bind,
            advertise=settings.advertise,
            port=settings.port,
            metrics_port=settings.metrics_port,
            drain_timeout_s=settings.drain_timeout_s,
            release=settings.release or os.environ.get(_CLUSTER, ""),
            internal_tls=settings.internal_tls,
        ),
    )


def run_worker(settings: WorkerSettings) -> None:
    """Run a worker in this process until SIGTERM or SIGINT; then drain and stop."""
    setup_logging(settings.role)
    asyncio.run(run_until_signal(build_host(settings)))
