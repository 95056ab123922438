"""What may be asked of a session's time and metadata. Pure; says the field and the numbers."""

from collections.abc import Mapping

from gemline.cluster.sessions import MAX_TTL_S
from gemline.errors import InvalidRequest

DEFAULT_TTL_S = 3600.0
MAX_ENTRIES = 16
MAX_KEY_CHARS = 64
MAX_VALUE_CHARS = 512
DEFAULT_LIMIT, MAX_LIMIT = 20, 100


def check_ttl(ttl_s: int | None) -> float | None:
    """Raises InvalidRequest unless it is from one second to seven days."""
    if ttl_s is not None and not 1 <= ttl_s <= MAX_TTL_S:
        raise InvalidRequest(f"ttl_s must be from 1 to {MAX_TTL_S:.0f}, not {ttl_s}", param="ttl_s")
    return None if ttl_s is None else float(ttl_s)


def check_metadata(metadata: Mapping[str, str]) -> None:
    """Raises InvalidRequest for too much of it, and for text that is none."""
    if len(metadata) > MAX_ENTRIES:
        raise InvalidRequest(f"metadata has {len(metadata)} entries; at most {MAX_ENTRIES} are kept", param="metadata")
    for key, value in metadata.items():
        if not 1 <= len(key) <= MAX_KEY_CHARS:
            message = f"metadata: a key must have from 1 to {MAX_KEY_CHARS} characters, not {len(key)}"
            raise InvalidRequest(message, param="metadata")
        if len(value) > MAX_VALUE_CHARS:
            message = f"metadata: a value may have {MAX_VALUE_CHARS} characters, not {len(value)}"
            raise InvalidRequest(message, param="metadata")
        if any("\ud800" <= character <= "\udfff" for character in key + value):
            raise InvalidRequest("metadata is not valid Unicode: half a surrogate pair", param="metadata")


def check_limit(limit: int | None) -> int:
    """How many to list."""
    if limit is not None and not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequest(f"limit must be from 1 to {MAX_LIMIT}, not {limit}", param="limit")
    return DEFAULT_LIMIT if limit is None else limit
