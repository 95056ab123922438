"""Moments and spans of time as operators write them: 2026-11-01, 7d. Knows no Redis."""

import re
import time
from datetime import UTC, datetime

from gemline.errors import ConfigurationError

_UNITS_S = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SPAN = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhd]?)", re.ASCII)
_UNIX_S = re.compile(r"[0-9]{1,11}(\.[0-9]{1,9})?", re.ASCII)


def span_s(text: str, param: str) -> float:
    """Seconds of 45s, 90m, 12h, 30d or 45. Raises ConfigurationError."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ConfigurationError(f"{param} {text[:80]!r} is no span of time such as 90m, 12h or 30d", param=param)
    return float(found[1]) * _UNITS_S[found[2] or "s"]


def moment_ms(text: str, param: str) -> int:
    """Milliseconds since 1970 of a date or time in ISO 8601, of UTC unless it says another zone; of seconds since 1970;
    or of a span ago, such as 7d. Raises ConfigurationError."""
    if _UNIX_S.fullmatch(text):
        return int(float(text) * 1e3)
    if _SPAN.fullmatch(text):
        return max(0, int((time.time() - span_s(text, param)) * 1e3))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigurationError(
            f"{param} {text[:80]!r} is no time: write 2026-11-01, 2026-11-01T12:00:00Z, or 7d for seven days ago",
            param=param,
        ) from None
    at_ms = int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1e3)
    if at_ms < 0:
        raise ConfigurationError(f"{param} {text[:80]!r} is before 1970", param=param)
    return at_ms
