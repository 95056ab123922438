"""How sessions call Redis: as everybody does, but users read the errors, which must not name our Redis."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from gemline.cluster.connection import calling
from gemline.errors import Unavailable

logger = logging.getLogger(__name__)


@asynccontextmanager
async def reaching(redis: Redis) -> AsyncIterator[None]:
    """`calling`, with an error for users; the log has the rest."""
    try:
        async with calling(redis):
            yield
    except Unavailable as error:
        logger.warning("sessions cannot be reached: %s", error)
        raise Unavailable("sessions cannot be reached now; try again") from error
