"""A command line as our own parser reads it, without running it."""

from typing import Any

import typer

from gemline.cli.main import app


def parse(arguments: list[str]) -> dict[str, Any]:
    """Parameters of `gemline ARGUMENTS`. Raises the parser's own error for what it does not know."""
    command: Any = typer.main.get_command(app())
    words = list(arguments)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    params: dict[str, Any] = command.make_context("gemline", words).params
    return params


def group_params(arguments: list[str]) -> dict[str, Any]:
    """Parameters that `gemline ARGUMENTS` itself has, where commands stand below it."""
    command: Any = typer.main.get_command(app())
    for word in arguments:
        command = command.commands[word]
    params: dict[str, Any] = command.make_context("gemline", ["--"]).params
    return params
