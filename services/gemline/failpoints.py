"""A fault that an operator asks for, to see what the platform makes of it. Nothing without GEMLINE_FAILPOINT.

    GEMLINE_FAILPOINT=crash_on_token:271 gemline worker decode ...

A decode worker started so kills itself (SIGKILL) when a request brings that token id, or gets it as its next token.
"""

import logging
import os
import signal
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gemline.errors import ConfigurationError

VARIABLE = "GEMLINE_FAILPOINT"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrashOnToken:
    """Ends this process, as a crash would, at the first sight of the token."""

    token_id: int

    def see(self, token_ids: Collection[int]) -> None:
        """Called with whatever a request brings or gets."""
        if self.token_id in token_ids:
            os.kill(os.getpid(), signal.SIGKILL)


def failpoint(environment: Mapping[str, str]) -> CrashOnToken | None:
    """What the operator asked for; None when the variable is not set. Raises ConfigurationError for anything else."""
    asked = environment.get(VARIABLE, "")
    if not asked:
        return None
    name, _, token_id = asked.partition(":")
    if name != "crash_on_token" or not token_id.isdecimal():
        raise ConfigurationError(f"{VARIABLE} must be crash_on_token:TOKEN_ID, not {asked!r}")
    _log.warning("%s=%s: this worker will kill itself when it sees token %s", VARIABLE, asked, token_id)
    return CrashOnToken(int(token_id))
