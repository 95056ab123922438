"""The certificate of a release's processes, and its CA: kept in two Secrets, made and renewed in time."""

import contextlib
import datetime
from collections.abc import Callable, Iterator

from gemline.errors import ConfigurationError, Conflict
from gemline.rollout.secrets import Secret, Secrets
from gemline.rpc.authority import (
    CA_RENEWED_BEFORE,
    RENEWED_BEFORE,
    Pair,
    is_by,
    is_due,
    issue,
    new_authority,
    renewed_authority,
)

_LABELS = {"app.kubernetes.io/name": "gemline", "app.kubernetes.io/component": "tls"}


async def keep(secrets: Secrets, name: str, now: datetime.datetime, report: Callable[[str], None]) -> None:
    """Sees to Secret `name` (tls.crt, tls.key, ca.crt) and its CA's, `name`-ca. Changes nothing that is good.

    Raises Conflict when the certificate is of another CA, or the CA is gone: processes that trust the one would refuse
    the other, so an operator must say so. Raises ConfigurationError, which names the Secret that holds none.
    """
    held, held_ca = await secrets.read(name), await secrets.read(f"{name}-ca")
    if held is not None and held_ca is None:
        raise Conflict(f"Secret {name} is there, and that of its CA, {name}-ca, is not: delete {name} to begin anew")
    authority = await _kept_authority(secrets, f"{name}-ca", held_ca, now, report)
    if held is not None:
        with _named(name):
            pair = _pair(held)
            if not is_by(pair, authority):
                raise Conflict(
                    f"Secret {name} holds a certificate of another CA than {name}-ca: delete it to begin anew"
                )
            if not is_due(pair, RENEWED_BEFORE, now) and held.data.get("ca.crt") == authority.certificate:
                report(f"{name}: is good")
                return
    made = issue(authority, now)
    data = {"tls.crt": made.certificate, "tls.key": made.key, "ca.crt": authority.certificate}
    await secrets.write(name, data, _LABELS, held)
    report(f"{name}: {'renewed' if held else 'made'}")


async def _kept_authority(
    secrets: Secrets, name: str, held: Secret | None, now: datetime.datetime, report: Callable[[str], None]
) -> Pair:
    if held is None:
        authority = new_authority(name, now)
    else:
        with _named(name):
            authority = _pair(held)
            if not is_due(authority, CA_RENEWED_BEFORE, now):
                return authority
            authority = renewed_authority(authority, now)
    await secrets.write(name, {"tls.crt": authority.certificate, "tls.key": authority.key}, _LABELS, held)
    report(f"{name}: {'renewed' if held else 'made'}")
    return authority


def _pair(held: Secret) -> Pair:
    return Pair(held.data.get("tls.crt", b""), held.data.get("tls.key", b""))


@contextlib.contextmanager
def _named(secret: str) -> Iterator[None]:
    try:
        yield
    except ConfigurationError as error:
        raise ConfigurationError(f"Secret {secret}: {error.message}") from error
