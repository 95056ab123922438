"""How sessions are named: their ids, and their keys in Redis, which nobody can guess or choose for another tenant.

    gemline:{FAMILY}:SESSION:meta   hash   what is known of it, see gemline.cluster.sessions
    gemline:{FAMILY}:SESSION:ids    string its token ids, see gemline.cluster.session_vault
    gemline:{TENANT}:made           zset   the tenant's session ids by creation, Redis TIME, us
    gemline:{TENANT}:ends           zset   the same by their end, Redis TIME, ms

FAMILY, SESSION and TENANT are digests of the tenant and of a part of the id. A fork keeps the first half of its
source's id, so both lie in one slot of a Redis Cluster and one can be copied from the other there.
"""

import hashlib
import hmac
import re
import secrets
from typing import NamedTuple

from gemline.errors import SessionNotFound

_ID = re.compile(r"ses_([0-9a-f]{16})[0-9a-f]{16}")
_DOMAIN = b"gemline session names"
_ECHO_CHARS = 80


class SessionKeys(NamedTuple):
    """Where one session is kept."""

    meta: str
    ids: str
    family: bytes  # what its encrypted token ids are bound to


class IndexKeys(NamedTuple):
    """Where the list of one tenant's sessions is kept."""

    made: str
    ends: str


class SessionNames:
    """With a secret, keys are HMAC-SHA-256 under it; without one, SHA-256."""

    def __init__(self, secret: bytes = b"") -> None:
        self._secret = secret

    def keys(self, tenant_id: str, session_id: str) -> SessionKeys:
        """The session's keys; raises SessionNotFound for what is no id of ours."""
        match = _ID.fullmatch(session_id)
        if match is None:
            raise no_session(session_id)
        family = self._digest("family", tenant_id, match[1])
        own = f"gemline:{{{family.hex()}}}:{self._digest('session', tenant_id, session_id).hex()}"
        return SessionKeys(f"{own}:meta", f"{own}:ids", family)

    def index(self, tenant_id: str) -> IndexKeys:
        """The keys of the tenant's list."""
        own = f"gemline:{{{self._digest('tenant', tenant_id).hex()}}}"
        return IndexKeys(f"{own}:made", f"{own}:ends")

    def _digest(self, *parts: str) -> bytes:
        """Of the parts with their lengths, so that no two lists of parts look the same."""
        message = _DOMAIN
        for part in parts:
            data = part.encode("utf-8", "surrogatepass")
            message += len(data).to_bytes(8, "little") + data
        whole = hmac.digest(self._secret, message, "sha256") if self._secret else hashlib.sha256(message).digest()
        return whole[:16]


def new_session_id() -> str:
    """An id that nobody has: "ses_" and 32 hex digits."""
    return f"ses_{secrets.token_hex(16)}"


def new_fork_id(session_id: str) -> str:
    """An id for a fork of that session."""
    return session_id[:20] + secrets.token_hex(8)


def no_session(session_id: str) -> SessionNotFound:
    """The same words for one that never was, one that is over, and one of another tenant."""
    return SessionNotFound(f"there is no session {session_id[:_ECHO_CHARS]!r}", param="session_id")
