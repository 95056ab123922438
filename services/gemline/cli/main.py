"""The `gemline` command: finds the subcommand, and tells an error in one line. Imports nothing heavy."""

import os
import sys
from typing import TYPE_CHECKING, Annotated

from gemline import __version__
from gemline.errors import GemlineError

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line of this process; never returns. Exit code 1: it failed; 2: it was called wrongly."""
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # else gRPC tells the terminal of every connection that ends
    try:
        app()(prog_name="gemline")
    except GemlineError as error:
        _fail(error.message)
    except ModuleNotFoundError as error:
        _fail(f"the package {error.name} is not installed: pip install 'gemline[serve]'", error)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error} (GEMLINE_TRACEBACK=1 shows where)", error)


def app() -> "typer.Typer":
    """Every command of `gemline`."""
    import typer

    from gemline.cli import (
        audit,
        bench,
        certificates,
        chat,
        distill,
        doctor,
        fetch,
        gateway,
        generate,
        keys,
        plan,
        prefix,
        project,
        rollout,
        session,
        tenant,
        up,
        usage,
        worker,
    )

    def show_version(wanted: bool) -> None:
        if wanted:
            print(f"gemline {__version__}")
            raise typer.Exit

    def options(
        version: Annotated[
            bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show the version and exit.")
        ] = False,
    ) -> None:
        """Options of `gemline` itself."""

    commands = typer.Typer(
        help="Gemma 2 for many tenants, from one laptop to a cluster.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    commands.callback()(options)
    for command in (
        *(up.up, chat.chat, generate.generate, bench.bench, doctor.doctor),
        *(worker.worker, gateway.gateway, distill.distill, plan.plan, fetch.fetch, usage.usage, audit.audit),
        certificates.certificates,
    ):
        commands.command()(command)
    commands.add_typer(tenant.app(), name="tenant")
    commands.add_typer(project.app(), name="project")
    commands.add_typer(keys.app(), name="key")
    commands.add_typer(prefix.app(), name="prefix")
    commands.add_typer(session.app(), name="session")
    commands.add_typer(rollout.app(), name="rollout")
    return commands


def _fail(message: str, cause: Exception | None = None) -> None:
    if cause is not None and os.environ.get("GEMLINE_TRACEBACK"):
        raise cause
    print("gemline:", " ".join(message.split()), file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
