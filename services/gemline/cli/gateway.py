"""`gemline gateway`: the public front as a process of its own."""

from pathlib import Path
from typing import Annotated

import typer


def gateway(
    redis_url: Annotated[str, typer.Option(envvar="GEMLINE_REDIS_URL", help="where workers register")],
    keys_file: Annotated[Path | None, typer.Option(help="API keys, a line `tenant:key` each, besides Redis")] = None,
    http_host: Annotated[str, typer.Option(help="address of the HTTP server")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0: any free one")] = 8080,
    grpc_host: Annotated[str, typer.Option(help="address of the gRPC server")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0: any free one")] = 50051,
    body_limit_bytes: Annotated[int, typer.Option(help="largest request accepted")] = 4 * 1024 * 1024,
    drain_timeout_s: Annotated[float, typer.Option(help="most seconds to finish running answers")] = 30.0,
    ready_file: Annotated[Path | None, typer.Option(help="written, as JSON, once requests can be answered")] = None,
) -> None:
    """Run the gateway until SIGTERM: HTTP (OpenAI's API) and gRPC in, token streams out."""
    arguments = locals().copy()
    from gemline.gateway.process import run_gateway
    from gemline.gateway.settings import GatewaySettings

    run_gateway(GatewaySettings(**arguments))
