"""Where a gateway is and on what terms it is called: what the sync and the async client have in common."""

from dataclasses import dataclass
from typing import Self

import grpc

from gemline.client.options import Keepalive, Tls, call_metadata, channel_credentials, channel_options
from gemline.client.retry import RetryPolicy, Tries

DEFAULT_TIMEOUT_S = 600.0
CLOSED = "this client is closed"


@dataclass(frozen=True, slots=True)
class Target:
    """A gateway, and how to reach it."""

    address: str
    model: str | None
    timeout_s: float | None
    retry: RetryPolicy
    credentials: grpc.ChannelCredentials | None
    options: tuple[tuple[str, str | int], ...]
    metadata: tuple[tuple[str, str | bytes], ...]

    @classmethod
    def of(
        cls,
        address: str,
        api_key: str | None,
        model: str | None,
        timeout_s: float | None,
        retry: RetryPolicy | None,
        tls: Tls | None,
        keepalive: Keepalive | None,
    ) -> Self:
        """Check a client's arguments; raises ConfigurationError for a key or a file that cannot be used."""
        return cls(
            address=address,
            model=model,
            timeout_s=timeout_s,
            retry=retry or RetryPolicy(),
            credentials=channel_credentials(tls) if tls else None,
            options=channel_options(keepalive or Keepalive(), tls),
            metadata=call_metadata(api_key),
        )

    def tries(self, timeout_s: float | None, *, changes: bool = False) -> Tries:
        """The tries of a request that starts now; None is the client's own timeout. `changes`: as for Tries."""
        return Tries(self.retry, self.address, self.timeout_s if timeout_s is None else timeout_s, changes=changes)
