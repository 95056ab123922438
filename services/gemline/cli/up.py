"""`gemline up`: everything on this machine, a first answer, and all of it gone again at Ctrl-C."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from gemline.cli.internal_tls import CA, CERTIFICATE, KEY
from gemline.errors import ConfigurationError

if TYPE_CHECKING:
    from gemline.serve.ready import Ready
    from gemline.serve.settings import StackSettings

_FIRST_PROMPT = "Hello! Who are you?"
_FIRST_ANSWER_TOKENS = 48


def up(
    model: Annotated[str | None, typer.Option(help="directory or Hugging Face id; default: a small demo model")] = None,
    runner: Annotated[Literal["ray", "process"], typer.Option(help="Ray Serve, or bare processes")] = "ray",
    topology: Annotated[
        Literal["split", "colocated"], typer.Option(help="prefill on workers of its own, or in the decode workers")
    ] = "split",
    prefill: Annotated[str, typer.Option(help="prefill workers; 1-3: between so many, as load needs, on Ray")] = "1",
    decode: Annotated[str, typer.Option(help="decode workers, likewise")] = "1",
    tokenization: Annotated[int, typer.Option(help="tokenization workers")] = 1,
    ttft_slo: Annotated[float, typer.Option(help="seconds to a first token that scaling is to hold")] = 2.0,
    itl_slo: Annotated[float, typer.Option(help="seconds between tokens that scaling is to hold")] = 0.2,
    scale_up_after: Annotated[float, typer.Option(help="seconds for which more workers must be needed")] = 5.0,
    scale_down_after: Annotated[float, typer.Option(help="seconds for which fewer must do")] = 60.0,
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
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0: any free one")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="0: any free one")] = 50051,
    admin_port: Annotated[
        int | None,
        typer.Option(help="turns the admin API on, on loopback, with $GEMLINE_ADMIN_KEY or a new key; 0: any free one"),
    ] = None,
    share_without_redis: Annotated[
        float, typer.Option(help="of each limit, from 0 to 1, while Redis is away; 0: who has limits is refused then")
    ] = 0.0,
    redis_url: Annotated[
        str | None, typer.Option(envvar="GEMLINE_REDIS_URL", help="default: an embedded Redis")
    ] = None,
    keys_file: Annotated[
        Path | None, typer.Option(help="API keys, a line `tenant:key` each; default: one new key")
    ] = None,
    served_model_name: Annotated[str | None, typer.Option(help="default: the model's own name")] = None,
    kv_blocks: Annotated[int | None, typer.Option(help="KV blocks of each engine; default: from memory")] = None,
    max_running: Annotated[
        int, typer.Option(help="most sequences that run at once on a worker; 0: what suits the device")
    ] = 0,
    max_batch_tokens: Annotated[int, typer.Option(help="most tokens in one engine step; 0: what suits the device")] = 0,
    prefix_cache: Annotated[bool, typer.Option(help="keep KV blocks for prompts that begin alike")] = True,
    remote_prefill: Annotated[
        Literal["auto", "always", "never"], typer.Option(help="whether decode workers leave prompts to prefill workers")
    ] = "auto",
    kv_transport: Annotated[
        Literal["auto", "shm", "socket", "grpc", "nixl"],
        typer.Option(help="by which keys and values travel between workers"),
    ] = "auto",
    tensor_parallel: Annotated[
        int, typer.Option(min=1, help="GPUs, or processes, that share each layer of an engine")
    ] = 1,
    prefill_tensor_parallel: Annotated[
        int | None, typer.Option(min=1, help="the same for prefill workers alone; default: as --tensor-parallel")
    ] = None,
    tensor_parallel_placement: Annotated[
        Literal["STRICT_PACK", "PACK"] | None,
        typer.Option(help="where Ray puts an engine's ranks: on one node (default), or on as few as can be"),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="torch threads of each engine; default: the cores, shared")
    ] = None,
    system_prompt: Annotated[
        Literal["refuse", "prepend"], typer.Option(help="system messages: an error, or put before the first user turn")
    ] = "refuse",
    internal_tls_certificate: Annotated[Path | None, CERTIFICATE] = None,
    internal_tls_key: Annotated[Path | None, KEY] = None,
    internal_tls_ca: Annotated[Path | None, CA] = None,
    ready_file: Annotated[Path | None, typer.Option(help="JSON with addresses, key and processes, once ready")] = None,
    first_prompt: Annotated[str, typer.Option(help="asked once ready; empty: nothing")] = _FIRST_PROMPT,
) -> None:
    """Start Redis, workers and gateway on this machine, answer a first request, and stay until Ctrl-C."""
    from gemline.cli.ready import default_ready_file
    from gemline.serve.settings import StackSettings

    num_prefill, max_prefill = _workers("--prefill", prefill)
    num_decode, max_decode = _workers("--decode", decode)
    settings = StackSettings(
        model=model,
        runner=runner,
        topology=topology,
        num_tokenization=tokenization,
        num_prefill=num_prefill,
        num_decode=num_decode,
        max_prefill=max_prefill,
        max_decode=max_decode,
        ttft_slo_s=ttft_slo,
        itl_slo_s=itl_slo,
        scale_up_after_s=scale_up_after,
        scale_down_after_s=scale_down_after,
        dtype=dtype,
        quantization=quantization,
        kv_cache_dtype=kv_cache_dtype,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        admin_port=admin_port,
        admin_key=os.environ.pop("GEMLINE_ADMIN_KEY", ""),  # which workers are not to inherit
        share_without_redis=share_without_redis,
        redis_url=redis_url,
        keys_file=keys_file,
        served_model_name=served_model_name,
        kv_blocks=kv_blocks,
        max_running=max_running,
        max_batch_tokens=max_batch_tokens,
        prefix_cache=prefix_cache,
        tensor_parallel=tensor_parallel,
        prefill_tensor_parallel=prefill_tensor_parallel,
        tensor_parallel_placement=tensor_parallel_placement,
        threads=threads,
        system_prompt=system_prompt,
        remote_prefill=remote_prefill,
        kv_transport=kv_transport,
        internal_tls_certificate=internal_tls_certificate,
        internal_tls_key=internal_tls_key,
        internal_tls_ca=internal_tls_ca,
        ready_file=ready_file or default_ready_file(),
    )
    asyncio.run(_run(settings, first_prompt))


class _Workers(NamedTuple):
    """How many at the start, and at most; 0: no more than at the start."""

    least: int
    most: int


def _workers(option: str, text: str) -> _Workers:
    """Of `2` or of `1-3`."""
    least, dash, most = text.partition("-")
    if not least.isdecimal() or (dash and not most.isdecimal()):
        raise ConfigurationError(f"{option} {text}: neither a number of workers nor a range like 1-3")
    return _Workers(int(least), int(most) if dash else 0)


async def _run(settings: "StackSettings", first_prompt: str) -> None:
    from gemline.errors import GemlineError
    from gemline.serve.stack import Stack

    begun = time.monotonic()
    stopped = _stop_event()
    stack = Stack(settings, lambda line: print(f"  {time.monotonic() - begun:5.1f} s  {line}", flush=True))
    print("gemline is starting", flush=True)
    start = asyncio.create_task(stack.start())
    await _first(start, stopped)
    if start.cancelled():
        return
    ready = start.result()
    try:
        _print_addresses(ready, time.monotonic() - begun)
        if first_prompt and ready.api_key:
            try:
                await _first(asyncio.create_task(_ask(ready, first_prompt)), stopped)
            except GemlineError as error:  # the stack may heal; whoever asks next will see
                print(f"\nno first answer: {error.message}", file=sys.stderr, flush=True)
        print("\nserving; Ctrl-C stops everything", flush=True)
        await _first(asyncio.create_task(stack.wait()), stopped)
        if not stopped.is_set():
            print(f"the gateway has ended; see {ready.log_dir}/gateway.log", file=sys.stderr)
    finally:
        print("\nstopping", flush=True)
        await stack.stop()
    if not stopped.is_set():
        raise typer.Exit(1)


def _stop_event() -> asyncio.Event:
    """Set by Ctrl-C or SIGTERM. A second one ends this process at once, and its children with it."""
    stopped = asyncio.Event()

    def stop() -> None:
        if stopped.is_set():
            os._exit(130)
        stopped.set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    return stopped


async def _first(task: "asyncio.Task[object]", stopped: asyncio.Event) -> None:
    """Wait for the task or for the stop signal, which cancels it. A failure of the task is raised."""
    waiting = asyncio.create_task(stopped.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    if task.done():
        task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _print_addresses(ready: "Ready", took_s: float) -> None:
    print(f"\nready after {took_s:.1f} s\n")
    quantized = "" if ready.quantization == "none" else f", {ready.quantization} weights"
    quantized += "" if ready.kv_dtype == ready.dtype else f", {ready.kv_dtype} keys and values"
    rows = {"HTTP": f"{ready.http}/v1", "gRPC": ready.grpc, "model": f"{ready.model} ({ready.dtype}{quantized})"}
    if ready.api_key:
        rows["API key"] = ready.api_key
    if ready.admin:
        rows["admin"] = f"{ready.admin}/admin/v1"
    if ready.admin_key:
        rows["admin key"] = ready.admin_key
    for name, value in {**rows, "logs": ready.log_dir}.items():
        print(f"  {name:9} {value}")
    print(flush=True)


async def _ask(ready: "Ready", prompt: str) -> None:
    """One chat request through the whole chain, streamed to the terminal."""
    from gemline.client import AsyncClient, Message

    print(f"> {prompt}")
    async with AsyncClient(ready.grpc, api_key=ready.api_key) as client:
        request = client.chat_stream(
            [Message("user", prompt)], model=ready.model, max_tokens=_FIRST_ANSWER_TOKENS, temperature=0.0
        )
        async with request as stream:
            async for piece in stream:
                print(piece.text, end="", flush=True)
        usage = stream.usage
    if usage is not None:
        print(f"\n\n({usage.prompt_tokens} tokens in, {usage.completion_tokens} out)", flush=True)
