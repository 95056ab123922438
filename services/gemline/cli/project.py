"""`gemline project`: parts of a tenant, with limits of their own beneath the tenant's. For operators."""

from dataclasses import asdict
from typing import Annotated

import typer

from gemline.cli import record_options as options
from gemline.cli.operating import RedisUrl, actor, run
from gemline.cli.record_lines import as_json, project_line

Tenant = Annotated[str, typer.Option(help="whose project it is")]
Name = Annotated[str, typer.Argument(help="1 to 64 letters, digits, '-', '_' or '.'", metavar="PROJECT")]


def app() -> typer.Typer:
    """The commands under `gemline project`."""
    commands = typer.Typer(help="Make projects of tenants, limit them, take them away.", no_args_is_help=True)
    commands.command()(create)
    commands.command("list")(list_projects)
    commands.command()(show)
    commands.command()(update)
    commands.command()(delete)
    return commands


def create(
    name: Name,
    tenant: Tenant,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a project; without options it has no limits but its tenant's."""
    fields = options.changes(locals())
    from gemline.cluster.access import ProjectRecord
    from gemline.cluster.changes import changed

    wanted = changed(ProjectRecord(tenant, name), fields)
    run(redis_url, lambda operations: operations.access(actor()).put_project(wanted, is_new=True))
    print(name)


def list_projects(tenant: Tenant, redis_url: RedisUrl = None) -> None:
    """A line for each."""
    for record in run(redis_url, lambda operations: operations.access(actor()).projects(tenant)):
        print(project_line(record))


def show(name: Name, tenant: Tenant, redis_url: RedisUrl = None) -> None:
    """All of one, as JSON."""
    print(as_json(asdict(run(redis_url, lambda operations: operations.access(actor()).project(tenant, name)))))


def update(
    name: Name,
    tenant: Tenant,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change what is given; gateways follow within seconds."""
    fields = options.changes(locals())
    from gemline.cluster.changes import changed

    record = run(
        redis_url,
        lambda operations: operations.access(actor()).amend_project(tenant, name, lambda it: changed(it, fields)),
    )
    print(project_line(record))


def delete(name: Name, tenant: Tenant, redis_url: RedisUrl = None) -> None:
    """Take it away with its keys; what it used stays on record."""
    run(redis_url, lambda operations: operations.access(actor()).delete_project(tenant, name))
    print(name)
