"""How the commands for operators reach Redis, and under which name they change what is there."""

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from gemline.cli.ready import default_ready_file, read_ready
from gemline.errors import ConfigurationError

if TYPE_CHECKING:
    from gemline.cluster.operations import Operations

RedisUrl = Annotated[
    str | None, typer.Option(envvar="GEMLINE_REDIS_URL", help="default: the Redis of the ready file's stack")
]
ResultT = TypeVar("ResultT")


def run(redis_url: str | None, work: "Callable[[Operations], Awaitable[ResultT]]") -> ResultT:
    """What comes of the work on that Redis, or on that of the stack which runs on this machine."""
    url = redis_url or _redis_of_stack()

    async def run() -> ResultT:
        from gemline.cluster.operations import operating

        async with operating(url) as operations:
            return await work(operations)

    return asyncio.run(run())


def actor() -> str:
    """Who acts, for the audit: the name that this machine knows the person by."""
    try:
        return f"cli:{getpass.getuser()}"
    except (KeyError, OSError):  # a container may run under an id without a name
        return "cli"


def _redis_of_stack() -> str:
    ready = read_ready(default_ready_file(), instead="--redis-url")
    if not ready.redis_url:
        raise ConfigurationError(f"ready file {ready.path} does not say where its Redis is: give --redis-url")
    return ready.redis_url
