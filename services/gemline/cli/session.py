"""`gemline session`: the conversations that a gateway keeps."""

import dataclasses
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from gemline.cli import options

if TYPE_CHECKING:
    from gemline.client import SessionInfo

SessionId = Annotated[str, typer.Argument(help="ses_ and 32 hex digits")]


def app() -> typer.Typer:
    """The commands under `gemline session`."""
    commands = typer.Typer(help="List, show and delete the conversations that a gateway keeps.", no_args_is_help=True)
    commands.command("list")(list_sessions)
    commands.command()(show)
    commands.command()(delete)
    return commands


def list_sessions(
    address: options.Address = None,
    api_key: options.ApiKey = None,
    tls: options.UseTls = False,
    root_certificates: options.RootCertificates = None,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """A line for each of the key's sessions, the newest first."""
    with options.open_client(address, api_key, None, tls, root_certificates, timeout_s) as client:
        for session in client.sessions.list():
            print(_line(session.info))


def show(
    session_id: SessionId,
    address: options.Address = None,
    api_key: options.ApiKey = None,
    tls: options.UseTls = False,
    root_certificates: options.RootCertificates = None,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """What is known of a session, as JSON."""
    with options.open_client(address, api_key, None, tls, root_certificates, timeout_s) as client:
        info = client.sessions.get(session_id).info
        print(json.dumps(dataclasses.asdict(info), default=datetime.isoformat, indent=2))


def delete(
    session_ids: Annotated[list[str], typer.Argument(help="one or more", metavar="SESSION_ID...")],
    address: options.Address = None,
    api_key: options.ApiKey = None,
    tls: options.UseTls = False,
    root_certificates: options.RootCertificates = None,
    timeout_s: options.TimeoutS = 60.0,
) -> None:
    """End sessions; stops at the first that is not there."""
    with options.open_client(address, api_key, None, tls, root_certificates, timeout_s) as client:
        for session_id in session_ids:
            client.sessions.get(session_id).delete()
            print(session_id)


def _line(info: "SessionInfo") -> str:
    left_min = max(0.0, (info.expires_at - datetime.now(UTC)).total_seconds()) / 60
    return f"{info.id}  {info.model}  {info.num_turns} turns  {info.num_tokens} tokens  ends in {left_min:.0f} min"
