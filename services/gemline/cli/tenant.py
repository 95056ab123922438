"""`gemline tenant`: whom the platform serves, and how much of it each may have. For operators."""

from dataclasses import asdict
from typing import Annotated, Literal

import typer

from gemline.cli import record_options as options
from gemline.cli.operating import RedisUrl, actor, run
from gemline.cli.record_lines import as_json, tenant_line

Name = Annotated[str, typer.Argument(help="1 to 64 letters, digits, '-', '_' or '.'", metavar="TENANT")]
Weight = Annotated[float | None, typer.Option(help="of its share while several wait; 1 unless given")]
Band = Annotated[
    Literal["priority", "default", "batch"] | None,
    typer.Option(help="the most urgent it may ask for", show_default=False),
]


def app() -> typer.Typer:
    """The commands under `gemline tenant`."""
    commands = typer.Typer(help="Make tenants, limit them, take them away.", no_args_is_help=True)
    commands.command()(create)
    commands.command("list")(list_tenants)
    commands.command()(show)
    commands.command()(update)
    commands.command()(delete)
    return commands


def create(
    name: Name,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    weight: Weight = None,
    band: Band = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a tenant; without options it has no limits."""
    fields = options.changes(locals())
    from gemline.cluster.access import TenantRecord
    from gemline.cluster.changes import changed

    wanted = changed(TenantRecord(name), fields)
    run(redis_url, lambda operations: operations.access(actor()).put_tenant(wanted, is_new=True))
    print(name)


def list_tenants(redis_url: RedisUrl = None) -> None:
    """A line for each."""
    for record in run(redis_url, lambda operations: operations.access(actor()).tenants()):
        print(tenant_line(record))


def show(name: Name, redis_url: RedisUrl = None) -> None:
    """All of one, as JSON."""
    print(as_json(asdict(run(redis_url, lambda operations: operations.access(actor()).tenant(name)))))


def update(
    name: Name,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    weight: Weight = None,
    band: Band = None,
    is_disabled: Annotated[
        bool | None, typer.Option("--disable/--enable", help="whether its requests are refused", show_default=False)
    ] = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change what is given; gateways follow within seconds."""
    fields = options.changes(locals())
    from gemline.cluster.changes import changed

    record = run(
        redis_url, lambda operations: operations.access(actor()).amend_tenant(name, lambda it: changed(it, fields))
    )
    print(tenant_line(record))


def delete(name: Name, redis_url: RedisUrl = None) -> None:
    """Take it away with its projects and keys; what it used stays on record."""
    run(redis_url, lambda operations: operations.access(actor()).delete_tenant(name))
    print(name)
