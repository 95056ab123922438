"""`gemline key`: the API keys that tenants call with, kept in Redis as hashes."""

import asyncio
import getpass
from typing import Annotated

import typer


def app() -> typer.Typer:
    """The commands under `gemline key`."""
    commands = typer.Typer(help="Make API keys for tenants.", no_args_is_help=True)
    commands.callback()(_key)
    commands.command()(create)
    return commands


def _key() -> None:
    """Make API keys for tenants."""


def create(
    tenant: Annotated[str, typer.Option(help="whose key it is")],
    redis_url: Annotated[str, typer.Option(envvar="GEMLINE_REDIS_URL", help="where the gateway finds it")],
) -> None:
    """Make a key and print it: this once, for only its hash is kept."""
    print(asyncio.run(_create(tenant, redis_url)))


async def _create(tenant: str, redis_url: str) -> str:
    from gemline.cluster.access import KeyRecord
    from gemline.cluster.access_store import AccessStore
    from gemline.cluster.connection import connect

    redis = connect(redis_url)
    try:
        return (await AccessStore(redis, f"cli:{getpass.getuser()}").create_key(KeyRecord(tenant))).key
    finally:
        await redis.aclose()
