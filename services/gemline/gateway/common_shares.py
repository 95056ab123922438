"""Keeps a gateway's counters of service together with those of other gateways, twice a second and behind requests."""

import asyncio
import logging

from gemline.cluster.served import ServedElsewhere
from gemline.errors import GemlineError
from gemline.gateway.shares import Shares

EVERY_S = 0.5  # so much of the others' service is not known here yet: it adds to the bound of fairness

log = logging.getLogger(__name__)


async def follow(shares: Shares, elsewhere: ServedElsewhere, every_s: float = EVERY_S) -> None:
    """Until it is cancelled. While Redis is away each gateway is fair by itself."""
    fresh: dict[str, float] = {}
    while True:
        await asyncio.sleep(every_s)
        for tenant, amount in shares.take_fresh().items():
            fresh[tenant] = fresh.get(tenant, 0.0) + amount
        known = shares.known()
        if not known:
            continue
        try:
            shares.add_foreign(await elsewhere.exchange(fresh, known))
            fresh = {}
        except GemlineError as error:
            log.warning("service given by other gateways is not known now: %s", error)
        except Exception:
            log.exception("service given by other gateways cannot be read")
