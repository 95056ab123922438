"""The admin API's answers as its document shows them: every field there is, and no other. `views.py` writes them."""

from typing import Any, Literal

from gemline.cluster.access import Band
from gemline.cluster.limits import Limits
from gemline.gateway.http.answers import Answer, ErrorAnswer


class _Common(Answer):
    """What tenants, projects and keys have. `created_at` is a Unix time in seconds."""

    id: str
    label: str
    limits: Limits
    models: list[str] | None
    created_at: int


class TenantAnswer(_Common):
    """A tenant."""

    object: Literal["tenant"]
    weight: float
    band: Band
    is_disabled: bool


class ProjectAnswer(_Common):
    """A project."""

    object: Literal["project"]
    tenant_id: str


class KeyAnswer(_Common):
    """A key, by its id. `expires_at`: a Unix time in seconds, null: never; `replaced_by`: what a rotation made."""

    object: Literal["key"]
    tenant_id: str
    project_id: str | None
    expires_at: int | None
    replaced_by: str | None


class NewKeyAnswer(KeyAnswer):
    """A key that was made; `key` is shown this once."""

    key: str


class PrefixAnswer(Answer):
    """A public prefix."""

    id: str
    object: Literal["public_prefix"]
    model: str
    is_raw: bool
    num_characters: int


class AuditAnswer(Answer):
    """A change, with what was and what is; `at_ms` is a Unix time in milliseconds."""

    id: str
    object: Literal["audit_line"]
    at_ms: int
    actor: str
    action: str
    subject: str
    before: Any
    after: Any


class Deleted(Answer):
    """What is there no longer."""

    id: str
    object: Literal["tenant.deleted", "project.deleted", "key.deleted", "public_prefix.deleted"]
    deleted: Literal[True]


class UsageAnswer(Answer):
    """A settled request. Tokens are those that were delivered; `at_ms` is a Unix time in milliseconds."""

    entry_id: str
    request_id: str
    tenant: str
    project: str
    key_id: str
    model: str
    outcome: str
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    kv_byte_seconds: int
    at_ms: int


class UsageSumAnswer(Answer):
    """What one tenant used of one model."""

    tenant: str
    model: str
    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    kv_byte_seconds: int


class _List(Answer):
    """All there are."""

    object: Literal["list"]


class TenantList(_List):
    """All tenants."""

    data: list[TenantAnswer]


class ProjectList(_List):
    """The projects of a tenant."""

    data: list[ProjectAnswer]


class KeyList(_List):
    """The keys of a tenant."""

    data: list[KeyAnswer]


class PrefixList(_List):
    """All public prefixes."""

    data: list[PrefixAnswer]


class _Page(_List):
    """Some; `next` is where the following page begins, null on the last."""

    has_more: bool
    next: str | None


class UsageSums(_Page):
    """Sums; those of all pages are to be added up."""

    data: list[UsageSumAnswer]


class AuditPage(_Page):
    """Changes, the newest first."""

    data: list[AuditAnswer]


class UsagePage(_Page):
    """Records, the oldest first."""

    data: list[UsageAnswer]


ANSWERS: tuple[type[Answer], ...] = (
    *(ErrorAnswer, TenantAnswer, TenantList, ProjectAnswer, ProjectList, KeyAnswer, KeyList, NewKeyAnswer, Deleted),
    *(PrefixAnswer, PrefixList, AuditPage, UsagePage, UsageSums),
)
