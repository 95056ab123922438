"""`gemline doctor`: looks at this machine, and on request at a checkpoint and at a running stack."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemline.cache import cache_dir
from gemline.cli.options import find_stack

if TYPE_CHECKING:
    from gemline.cli.checks.check import Check

_MARKS = {"ok": "ok  ", "warning": "WARN", "failure": "FAIL"}


def doctor(
    model: Annotated[Path | None, typer.Option(help="a checkpoint folder to check too")] = None,
    address: Annotated[str | None, typer.Option(help="HOST:PORT of a running gateway's gRPC to check too")] = None,
    api_key: Annotated[str | None, typer.Option(envvar="GEMLINE_API_KEY", help="for --address")] = None,
    http_port: Annotated[int, typer.Option(help="the HTTP port you mean to use")] = 8080,
    grpc_port: Annotated[int, typer.Option(help="the gRPC port you mean to use")] = 50051,
    as_json: Annotated[bool, typer.Option("--json", help="the findings as a JSON array")] = False,
) -> None:
    """Check this machine for what gemline needs; exit code 1 when something fails."""
    from gemline.cli.checks import compute, machine, software
    from gemline.cli.checks import model as checkpoint

    ports = {"--http-port": http_port, "--grpc-port": grpc_port}
    findings = machine.checks(ports, cache_dir()) + software.checks() + compute.checks()
    if model is not None:
        findings += checkpoint.checks(model)
    if address is not None:
        from gemline.cli.checks import stack

        findings += stack.checks(*find_stack(address, api_key))
    print(_as_json(findings) if as_json else _as_table(findings))
    if any(finding.outcome.value == "failure" for finding in findings):
        raise typer.Exit(1)


def _as_json(findings: "list[Check]") -> str:
    return json.dumps([asdict(finding) for finding in findings], default=lambda outcome: outcome.value, indent=2)


def _as_table(findings: "list[Check]") -> str:
    width = max(len(finding.name) for finding in findings)
    rows = []
    for finding in findings:
        rows.append(f"{_MARKS[finding.outcome.value]}  {finding.name:{width}}  {finding.found}")
        if finding.advice:
            rows.append(f"{'':{width + 6}}  -> {finding.advice}")
    return "\n".join(rows)
