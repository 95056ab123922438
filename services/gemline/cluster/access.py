"""Who may use the platform, and how much: tenants, their projects, and keys. Plain data; knows no Redis."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

from gemline.cluster.limits import Limits, Scope
from gemline.errors import ConfigurationError

Band = Literal["priority", "default", "batch"]
BANDS: tuple[Band, ...] = ("priority", "default", "batch")  # the most urgent first

NAME_PATTERN = "[A-Za-z0-9._-]{1,64}"
MAX_LABEL = 200
MAX_MODELS = 64
MAX_MODEL_NAME = 200
MIN_WEIGHT, MAX_WEIGHT = 0.001, 1000

_NAME = re.compile(NAME_PATTERN, re.ASCII)


@dataclass(frozen=True, slots=True)
class _Record:
    """What all three have. `models` is an allow-list of names; None allows all."""

    limits: Limits = field(default_factory=Limits, kw_only=True)
    models: tuple[str, ...] | None = field(default=None, kw_only=True)
    label: str = field(default="", kw_only=True)
    created_ms: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if len(self.label) > MAX_LABEL:
            raise ConfigurationError(f"label has {len(self.label)} characters, over {MAX_LABEL}", param="label")
        if self.models is not None and len(self.models) > MAX_MODELS:
            raise ConfigurationError(f"models names {len(self.models)}, over {MAX_MODELS}", param="models")
        for name in self.models or ():
            if not 1 <= len(name) <= MAX_MODEL_NAME:
                message = f"models has a name of {len(name)} characters; it must have from 1 to {MAX_MODEL_NAME}"
                raise ConfigurationError(message, param="models")

    def to_json(self) -> str:
        """As it is kept in Redis."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """What `to_json` gave; fields of a later release are left out."""
        values: dict[str, Any] = json.loads(text)
        known = {each.name for each in fields(cls)} & values.keys()
        chosen = {name: values[name] for name in known}
        chosen["limits"] = Limits(**chosen.get("limits", {}))
        if chosen.get("models") is not None:
            chosen["models"] = tuple(chosen["models"])
        return cls(**chosen)


@dataclass(frozen=True, slots=True)
class TenantRecord(_Record):
    """Whom the platform serves; caches and sessions are apart by tenant."""

    tenant_id: str
    weight: float = 1.0  # of its share while several wait
    band: Band = "default"  # the most urgent that its requests may ask for
    is_disabled: bool = False

    def __post_init__(self) -> None:
        _Record.__post_init__(self)
        check_name("tenant", self.tenant_id)
        if not MIN_WEIGHT <= self.weight <= MAX_WEIGHT:
            message = f"weight must be from {MIN_WEIGHT} to {MAX_WEIGHT}, is {self.weight}"
            raise ConfigurationError(message, param="weight")
        if self.band not in BANDS:
            raise ConfigurationError(f"band must be one of {', '.join(BANDS)}, is {self.band!r}", param="band")


@dataclass(frozen=True, slots=True)
class ProjectRecord(_Record):
    """A part of a tenant with limits of its own, beneath the tenant's."""

    tenant_id: str
    project_id: str

    def __post_init__(self) -> None:
        _Record.__post_init__(self)
        check_name("tenant", self.tenant_id)
        check_name("project", self.project_id)


@dataclass(frozen=True, slots=True)
class KeyRecord(_Record):
    """An API key without its secret: `digest` is the SHA-256, hex, of the whole key."""

    tenant_id: str
    project_id: str = ""  # of no project
    key_id: str = ""  # these two are made with the key
    digest: str = ""
    expires_ms: int = 0  # of Redis's clock; 0: never
    replaced_by: str = ""  # the key_id that a rotation made in its place

    def public(self) -> dict[str, Any]:
        """For people and the audit: all but the digest."""
        return {name: value for name, value in asdict(self).items() if name != "digest"}


@dataclass(frozen=True, slots=True)
class Access:
    """What a key gives: its tenant, and project and key where there are any."""

    tenant: TenantRecord
    project: ProjectRecord | None = None
    key: KeyRecord | None = None

    @property
    def scopes(self) -> tuple[Scope, ...]:
        """All that limits it."""
        found = [Scope(f"t/{self.tenant.tenant_id}", self.tenant.limits)]
        if self.project is not None:
            found.append(Scope(f"p/{self.project.tenant_id}/{self.project.project_id}", self.project.limits))
        if self.key is not None:
            found.append(Scope(f"k/{self.key.key_id}", self.key.limits))
        return tuple(scope for scope in found if not scope.limits.are_none)

    def allows(self, model_id: str) -> bool:
        """Whether every allow-list has the model."""
        lists = (record.models for record in (self.tenant, self.project, self.key) if record is not None)
        return all(models is None or model_id in models for models in lists)


def check_name(kind: str, name: str) -> None:
    """Raises ConfigurationError unless the name can stand in a keys file, a log line and a metric's label."""
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{kind} {name[:80]!r}: a name is 1 to 64 letters, digits, '-', '_' or '.'", param=kind
        )
