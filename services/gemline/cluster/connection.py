"""How a process reaches Redis: every call has a timeout, and errors name the host but never the password."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from gemline.errors import ConfigurationError, Unavailable

TIMEOUT_S = 1.0
MAX_CONNECTIONS = 32  # of a process

# A new connection then waits for one answer, not three: a Redis that takes 400 ms can still be connected to in time.
_NO_NOTICES = MaintNotificationsConfig(enabled=False)


def connect(url: str, *, retries: int = 1) -> Redis:
    """A client of the Redis at `url`; it connects when it is first used. Belongs to the running event loop.

    A call that fails on a broken connection is tried so often more, as Redis may have restarted in between; what must
    not happen twice is not tried again. Calls beyond MAX_CONNECTIONS wait for one. Raises ConfigurationError when the
    URL is none. Calls are made inside `calling`, which has the timeout: redis-py's own
    goes through asyncio.wait_for, and before Python 3.12 that may swallow the cancellation of the task.
    """
    retry = Retry(NoBackoff(), retries=retries, supported_errors=(RedisConnectionError,))
    try:
        pool = BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=None,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=retry,
            driver_info=None,
            maint_notifications_config=_NO_NOTICES,
        )
        return Redis.from_pool(pool)
    except ValueError as error:
        raise ConfigurationError(
            "redis_url is not a Redis URL: it begins with redis://, rediss:// or unix://", param="redis_url"
        ) from error


def location(redis: Redis) -> str:
    """Where the Redis is, for messages: host:port or the socket's path."""
    where = redis.connection_pool.connection_kwargs
    return str(where["path"]) if "path" in where else f"{where.get('host', 'localhost')}:{where.get('port', 6379)}"


@asynccontextmanager
async def calling(redis: Redis, timeout_s: float = TIMEOUT_S) -> AsyncIterator[None]:
    """Inside, whatever goes wrong between us and Redis, taking too long included, is raised as Unavailable."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (RedisError, OSError, TimeoutError) as error:
        raise Unavailable(f"Redis at {location(redis)} does not answer ({type(error).__name__})") from error
