"""`gemline gateway`: the public front as a process of its own."""

from pathlib import Path
from typing import Annotated

import typer

from gemline import garbage
from gemline.cli.internal_tls import CA, CERTIFICATE, KEY


def gateway(
    redis_url: Annotated[str, typer.Option(envvar="GEMLINE_REDIS_URL", help="where workers register")],
    keys_file: Annotated[Path | None, typer.Option(help="API keys, a line `tenant:key` each, besides Redis")] = None,
    http_host: Annotated[str, typer.Option(help="address of the HTTP server")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="0: any free one")] = 8080,
    grpc_host: Annotated[str, typer.Option(help="address of the gRPC server")] = "127.0.0.1",
    grpc_port: Annotated[int, typer.Option(help="0: any free one")] = 50051,
    admin_host: Annotated[str, typer.Option(help="address of the admin API")] = "127.0.0.1",
    admin_port: Annotated[int, typer.Option(help="of the admin API, if there is an admin key; 0: any free one")] = 8081,
    admin_key: Annotated[
        str,
        typer.Option(
            envvar="GEMLINE_ADMIN_KEY",
            help="turns the admin API on: 16 characters or more; better by the variable, for others see command lines",
            show_default=False,
        ),
    ] = "",
    share_without_redis: Annotated[
        float, typer.Option(help="of each limit, from 0 to 1, while Redis is away; 0: who has limits is refused then")
    ] = 0.0,
    body_limit_bytes: Annotated[int, typer.Option(help="largest request accepted")] = 4 * 1024 * 1024,
    resume_timeout_s: Annotated[
        float,
        typer.Option(
            envvar="GEMLINE_RESUME_TIMEOUT_S",
            help="most seconds that an answer whose worker has gone waits for another",
        ),
    ] = 10.0,
    silence_timeout_s: Annotated[
        float, typer.Option(help="seconds without a step after which a worker that owes tokens is given up")
    ] = 30.0,
    quarantine_s: Annotated[float, typer.Option(help="seconds for which a prompt that workers died of is refused")] = (
        300.0
    ),
    drain_timeout_s: Annotated[float, typer.Option(help="most seconds to finish running answers")] = 30.0,
    session_key: Annotated[
        str,
        typer.Option(
            envvar="GEMLINE_SESSION_KEY",
            help="encrypts what sessions hold: 32 bytes in base64; more, with commas, to read what they encrypted",
            show_default=False,
        ),
    ] = "",
    session_secret: Annotated[
        str,
        typer.Option(
            envvar="GEMLINE_SESSION_SECRET", help="goes into the names of sessions in Redis", show_default=False
        ),
    ] = "",
    tls_certificate: Annotated[
        Path | None, typer.Option(help="PEM chain of the public ports and the admin API; read again when it changes")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="its key, PEM, without a passphrase")] = None,
    tls_client_ca: Annotated[
        Path | None, typer.Option(help="mutual TLS: clients must show a certificate that this one signed")
    ] = None,
    internal_tls_certificate: Annotated[Path | None, CERTIFICATE] = None,
    internal_tls_key: Annotated[Path | None, KEY] = None,
    internal_tls_ca: Annotated[Path | None, CA] = None,
    ready_file: Annotated[Path | None, typer.Option(help="written, as JSON, once requests can be answered")] = None,
) -> None:
    """Run the gateway until SIGTERM: HTTP (OpenAI's API) and gRPC in, token streams out."""
    arguments = locals().copy()
    garbage.starting()
    from gemline.gateway.process import run_gateway
    from gemline.gateway.settings import GatewaySettings

    run_gateway(GatewaySettings(**arguments))
