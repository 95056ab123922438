"""`gemline prefix`: texts whose KV blocks all tenants may share, kept in Redis. For operators."""

from pathlib import Path
from typing import Annotated

import typer

from gemline.cli.operating import RedisUrl, actor, run
from gemline.cli.stdin import read_stdin
from gemline.errors import ConfigurationError


def app() -> typer.Typer:
    """The commands under `gemline prefix`."""
    commands = typer.Typer(
        help="Declare prompt prefixes public: all tenants share their KV blocks.", no_args_is_help=True
    )
    commands.command()(add)
    commands.command("list")(list_prefixes)
    commands.command()(remove)
    return commands


def add(
    name: Annotated[str, typer.Argument(help="what to call it; one of that name is replaced")],
    model: Annotated[str, typer.Option(help="the model it is for, by the name clients ask for")],
    redis_url: RedisUrl = None,
    file: Annotated[Path, typer.Option(help="the text; - is standard input", allow_dash=True)] = Path("-"),
    raw: Annotated[bool, typer.Option("--raw", help="a raw prompt, not a conversation's first message")] = False,
) -> None:
    """Declare a text public. Whoever can time answers can tell that it is cached: never declare a secret."""
    from gemline.cluster.public_prefixes import PublicPrefix

    prefix = PublicPrefix(name, model, _read(file), is_raw=raw)
    run(redis_url, lambda operations: operations.prefixes(actor()).put(prefix))
    print(name)


def list_prefixes(redis_url: RedisUrl = None) -> None:
    """A line for each."""
    for prefix in run(redis_url, lambda operations: operations.prefixes(actor()).all()):
        kind = "raw" if prefix.is_raw else "chat"
        print(f"{prefix.name}  {prefix.model}  {kind}  {len(prefix.text)} characters")


def remove(name: Annotated[str, typer.Argument(help="as it was declared")], redis_url: RedisUrl = None) -> None:
    """Share it no longer."""
    if not run(redis_url, lambda operations: operations.prefixes(actor()).remove(name)):
        raise ConfigurationError(f"there is no public prefix {name!r}")


def _read(file: Path) -> str:
    if str(file) == "-":
        return read_stdin()
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise ConfigurationError(f"file {file} cannot be read: {error}", param="file") from error
