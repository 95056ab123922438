"""How often one address may be wrong about the admin key. Knows no HTTP, and no key."""

import ipaddress
import time
from collections import OrderedDict

from gemline.errors import RateLimited

MAX_FAILURES = 10  # of an address within WINDOW_S
WINDOW_S = 60.0
MAX_ADDRESSES = 10_000  # that are remembered; who failed longest ago is forgotten first
_V6_PREFIX = 64  # bits: whoever has one IPv6 address has as many as that leaves


class FailedLogins:
    """Of one gateway. An address that was wrong too often is not listened to, right or wrong, until its first wrong
    key is WINDOW_S ago."""

    def __init__(self) -> None:
        self._failed_at: OrderedDict[str, list[float]] = OrderedDict()  # of the monotonic clock, the oldest first

    def check(self, address: str) -> None:
        """Raises RateLimited while nothing more is taken from the address."""
        recent = self._recent(_source(address))
        if len(recent) >= MAX_FAILURES:
            wait_s = max(0.0, recent[0] + WINDOW_S - time.monotonic())
            message = f"{MAX_FAILURES} wrong admin keys came from this address within {WINDOW_S:g} s; wait"
            raise RateLimited(message, retry_after_s=wait_s)

    def failed(self, address: str) -> None:
        """A wrong key came from there."""
        source = _source(address)
        self._failed_at[source] = [*self._recent(source), time.monotonic()]
        self._failed_at.move_to_end(source)
        if len(self._failed_at) > MAX_ADDRESSES:
            self._failed_at.popitem(last=False)

    def _recent(self, source: str) -> list[float]:
        since = time.monotonic() - WINDOW_S
        return [at for at in self._failed_at.get(source, ()) if at > since]


def _source(address: str) -> str:
    """What counts as one: an IPv4 address, an IPv6 network, and all that has neither."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((int(parsed), _V6_PREFIX), strict=False))
