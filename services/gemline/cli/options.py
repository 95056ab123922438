"""Options that `chat` and `generate` share: which stack, which model, how the next token is chosen."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemline.cli.ready import default_ready_file, read_ready
from gemline.errors import ConfigurationError

if TYPE_CHECKING:
    from gemline.client import Client, Sampling

_STACK = "Connection"
_SAMPLING = "Sampling"

Address = Annotated[
    str | None,
    typer.Option(help="HOST:PORT of a gateway's gRPC; default: the stack of the ready file", rich_help_panel=_STACK),
]
ApiKey = Annotated[
    str | None,
    typer.Option(envvar="GEMLINE_API_KEY", help="default: the ready file's, for its own stack", rich_help_panel=_STACK),
]
ModelName = Annotated[
    str | None, typer.Option("--model", help="default: the only model that is served", rich_help_panel=_STACK)
]
UseTls = Annotated[bool, typer.Option("--tls", help="reach the gateway over TLS", rich_help_panel=_STACK)]
RootCertificates = Annotated[
    Path | None,
    typer.Option(help="PEM file to trust instead of the usual roots; implies --tls", rich_help_panel=_STACK),
]
TimeoutS = Annotated[float, typer.Option(help="most seconds for one answer", rich_help_panel=_STACK)]

MaxTokens = Annotated[int | None, typer.Option(help="most tokens of an answer", rich_help_panel=_SAMPLING)]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default 1", rich_help_panel=_SAMPLING)]
TopK = Annotated[int | None, typer.Option(help="keep the k likeliest tokens", rich_help_panel=_SAMPLING)]
TopP = Annotated[float | None, typer.Option(help="keep the likeliest tokens up to p", rich_help_panel=_SAMPLING)]
Seed = Annotated[int | None, typer.Option(help="makes the answer repeatable", rich_help_panel=_SAMPLING)]
Stop = Annotated[list[str] | None, typer.Option(help="text that ends an answer; may repeat", rich_help_panel=_SAMPLING)]


def open_client(
    address: str | None,
    api_key: str | None,
    model: str | None,
    tls: bool,
    root_certificates: Path | None,
    timeout_s: float,
) -> "Client":
    """A client of the stack that the options name; raises ConfigurationError when they name none."""
    from gemline.client import Client, Tls

    address, api_key = find_stack(address, api_key)
    channel = Tls(root_certificates) if tls or root_certificates else None
    return Client(address, api_key=api_key, model=model, timeout_s=timeout_s, tls=channel)


def sampling(
    max_tokens: int | None,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: list[str] | None,
) -> "Sampling":
    """The options as the client takes them."""
    return {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "stop": stop,
    }


def schema_format(file: Path) -> dict[str, Any]:
    """The response_format of a JSON schema in a file; raises ConfigurationError, which names it."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigurationError(f"--json-schema {file}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigurationError(f"--json-schema {file} is no JSON: {error}") from None
    if not isinstance(schema, dict):
        raise ConfigurationError(f"--json-schema {file}: a schema is a JSON object")
    return {"type": "json_schema", "json_schema": {"name": file.stem, "schema": schema}}


def find_stack(address: str | None, api_key: str | None) -> tuple[str, str | None]:
    """Address and key to use: those given, else the ready file's."""
    if address is not None:
        return address, api_key or _ready_key(address)
    ready = read_ready(default_ready_file())
    return ready.grpc, api_key or ready.api_key


def _ready_key(address: str) -> str | None:
    """The ready file's key, for no stack but its own: another one must not learn it."""
    try:
        ready = read_ready(default_ready_file())
    except ConfigurationError:
        return None
    return ready.api_key if ready.grpc == address else None
