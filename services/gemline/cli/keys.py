"""`gemline key`: the API keys that tenants call with, kept in Redis as hashes. For operators."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from gemline.cli import record_options as options
from gemline.cli.operating import RedisUrl, actor, run
from gemline.cli.record_lines import key_line

if TYPE_CHECKING:
    from gemline.cluster.access import KeyRecord
    from gemline.cluster.operations import Operations

KeyId = Annotated[str, typer.Argument(help="what stands between gk_ and the secret", metavar="KEY_ID")]
ExpiresIn = Annotated[str | None, typer.Option(help="such as 12h or 30d; none: never", show_default=False)]


def app() -> typer.Typer:
    """The commands under `gemline key`."""
    commands = typer.Typer(help="Make API keys for tenants, change them, take them away.", no_args_is_help=True)
    commands.command()(create)
    commands.command("list")(list_keys)
    commands.command()(update)
    commands.command()(rotate)
    commands.command()(revoke)
    return commands


def create(
    tenant: Annotated[str, typer.Option(help="whose key it is; made, without limits, if there is none")],
    project: Annotated[str | None, typer.Option(help="of the tenant's; default: of none")] = None,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    expires_in: ExpiresIn = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a key and print it: this once, for only its hash is kept."""
    fields = options.changes(locals())

    async def work(operations: "Operations") -> str:
        from gemline.cluster.access import KeyRecord
        from gemline.cluster.changes import changed

        wanted = changed(KeyRecord(tenant, project or ""), fields | await _expiry(operations, expires_in))
        return (await operations.access(actor()).create_key(wanted)).key

    print(run(redis_url, work))


def list_keys(tenant: Annotated[str, typer.Option(help="whose keys")], redis_url: RedisUrl = None) -> None:
    """A line for each, expired ones too until they are revoked; never a key itself."""

    async def work(operations: "Operations") -> list[str]:
        access = operations.access(actor())
        now_ms = await access.now_ms()
        return [key_line(record, now_ms) for record in await access.keys(tenant)]

    for line in run(redis_url, work):
        print(line)


def update(
    key_id: KeyId,
    requests_per_min: options.RequestsPerMin = None,
    tokens_per_min: options.TokensPerMin = None,
    concurrent_requests: options.ConcurrentRequests = None,
    token_budget: options.TokenBudget = None,
    kv_byte_seconds: options.KvByteSeconds = None,
    period: options.Period = None,
    models: options.Models = None,
    label: options.Label = None,
    expires_in: ExpiresIn = None,
    redis_url: RedisUrl = None,
) -> None:
    """Change what is given; gateways follow within seconds."""
    fields = options.changes(locals())

    async def work(operations: "Operations") -> str:
        from gemline.cluster.changes import changed

        access = operations.access(actor())
        given = fields | await _expiry(operations, expires_in)

        def change(record: "KeyRecord") -> "KeyRecord":
            return changed(record, given)

        return key_line(await access.amend_key(key_id, change), await access.now_ms())

    print(run(redis_url, work))


def rotate(
    key_id: KeyId,
    grace: Annotated[str, typer.Option(help="how long the old key still holds, such as 90m or 24h")] = "24h",
    expires_in: ExpiresIn = None,
    redis_url: RedisUrl = None,
) -> None:
    """Make a key that gives the same, and print it: this once. The old one holds until the grace is over."""
    from gemline.cluster.moments import span_s

    grace_s = span_s(grace, "grace")

    async def work(operations: "Operations") -> str:
        expires_ms = (await _expiry(operations, expires_in)).get("expires_ms", 0)
        return (await operations.access(actor()).rotate(key_id, grace_s, expires_ms)).key

    print(run(redis_url, work))


def revoke(
    key_ids: Annotated[list[str], typer.Argument(help="one or more", metavar="KEY_ID...")], redis_url: RedisUrl = None
) -> None:
    """Refuse keys from now on, at every gateway within seconds; stops at the first that is not there."""

    async def work(operations: "Operations") -> None:
        for key_id in key_ids:
            await operations.access(actor()).revoke(key_id)
            print(key_id)

    run(redis_url, work)


async def _expiry(operations: "Operations", expires_in: str | None) -> dict[str, Any]:
    """The field, where it is given."""
    from gemline.cluster.access_store import expiry_ms
    from gemline.cluster.moments import span_s

    if expires_in is None:
        return {}
    in_s = None if expires_in == options.NONE else span_s(expires_in, "expires-in")
    return {"expires_ms": expiry_ms(await operations.access(actor()).now_ms(), in_s)}
