"""`gemline worker ROLE`: one worker as a bare process."""

from typing import Annotated, Literal

import typer

from gemline import garbage
from gemline.cli.internal_tls import CA, CERTIFICATE, KEY


def worker(
    role: Annotated[str, typer.Argument(help="tokenization, prefill or decode")],
    model_dir: Annotated[str, typer.Option(help="directory with config.json, tokenizer.json and safetensors")],
    served_model_name: Annotated[str, typer.Option(help="the name that clients ask for")],
    redis_url: Annotated[str, typer.Option(envvar="GEMLINE_REDIS_URL", help="where workers register")],
    bind: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    advertise: Annotated[str | None, typer.Option(help="address that others reach it by; default: bind")] = None,
    port: Annotated[int, typer.Option(help="gRPC port; 0: any free one")] = 0,
    metrics_port: Annotated[int, typer.Option(help="Prometheus port; 0: any free one")] = 0,
    dtype: Annotated[
        str, typer.Option(help="float32, bfloat16, or auto: bfloat16 if the checkpoint is and this CPU is fast in it")
    ] = "auto",
    quantization: Annotated[
        Literal["none", "int8", "int4", "fp8"], typer.Option(help="of the weights, while they are loaded")
    ] = "none",
    kv_cache_dtype: Annotated[
        Literal["auto", "fp8"],
        typer.Option(help="keys and values; auto: as --dtype; fp8: half of bfloat16's memory"),
    ] = "auto",
    kv_blocks: Annotated[int | None, typer.Option(help="KV blocks of the global pool; default: from memory")] = None,
    block_size: Annotated[int, typer.Option(help="tokens in a KV block; 0: what suits the device")] = 0,
    max_batch_tokens: Annotated[int, typer.Option(help="most tokens in one engine step; 0: what suits the device")] = 0,
    gpu_share: Annotated[float, typer.Option(help="of a GPU's memory, above 0 and at most 1")] = 1.0,
    tensor_parallel: Annotated[int, typer.Option(min=1, help="GPUs, or processes, that share each layer")] = 1,
    max_running: Annotated[int, typer.Option(help="most sequences that run at once; 0: what suits the device")] = 0,
    prefix_cache: Annotated[bool, typer.Option(help="keep KV blocks for prompts that begin alike")] = True,
    threads: Annotated[int | None, typer.Option(help="torch threads of the engine")] = None,
    kv_transport: Annotated[
        Literal["auto", "shm", "socket", "grpc", "nixl"],
        typer.Option(help="by which keys and values travel; auto: the fastest that both ends have"),
    ] = "auto",
    prefill: Annotated[
        Literal["auto", "always", "never"], typer.Option(help="whether a decode worker has prompts prefilled elsewhere")
    ] = "auto",
    system_prompt: Annotated[
        Literal["refuse", "prepend"], typer.Option(help="what a tokenization worker does with system messages")
    ] = "refuse",
    drain_timeout_s: Annotated[float, typer.Option(help="most seconds to finish running requests")] = 30.0,
    release: Annotated[
        str, typer.Option(help="that it comes with, for `gemline rollout`; default: the name of its KubeRay cluster")
    ] = "",
    internal_tls_certificate: Annotated[str | None, CERTIFICATE] = None,
    internal_tls_key: Annotated[str | None, KEY] = None,
    internal_tls_ca: Annotated[str | None, CA] = None,
) -> None:
    """Run one worker until SIGTERM: it registers in Redis, serves gRPC, and drains before it goes."""
    arguments = locals().copy()
    garbage.starting()
    from gemline.serve.settings import WorkerSettings
    from gemline.serve.workers import run_worker

    run_worker(WorkerSettings(**arguments))
