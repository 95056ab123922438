"""Bodies of the admin API. A field that is not known is refused: an operator's typo must not pass in silence."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gemline.gateway.http.bodies import Body
from gemline.gateway.http.schemas import FIRST_ERROR

Models = Annotated[list[str], Field(max_length=1000), FIRST_ERROR]


class AdminBody(Body):
    """Any body here."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The fields that were sent, null included, down to single limits."""
        return self.model_dump(exclude_unset=True)


class LimitsBody(AdminBody):
    """What a tenant, a project or a key may; null takes a limit away. The last two are for a `period` of UTC."""

    requests_per_min: int | None = None
    tokens_per_min: int | None = None
    concurrent_requests: int | None = None
    token_budget: int | None = None
    kv_byte_seconds: int | None = None
    period: Literal["day", "month"] = "month"


class ChangeProjectBody(AdminBody):
    """PATCH of a project: what is given changes, everything else stays. `models` null allows all."""

    label: str = ""
    limits: LimitsBody = LimitsBody()
    models: Models | None = None


class ChangeTenantBody(ChangeProjectBody):
    """PATCH of a tenant. `weight`: of its share while several wait. `band`: the most urgent it may ask for."""

    weight: float = 1.0
    band: Literal["priority", "default", "batch"] = "default"
    is_disabled: bool = False


class ChangeKeyBody(ChangeProjectBody):
    """PATCH of a key. `expires_in_s`: seconds from now, null: never."""

    expires_in_s: float | None = None


class NewTenantBody(ChangeTenantBody):
    """POST of a tenant."""

    id: str


class NewProjectBody(ChangeProjectBody):
    """POST of a project."""

    id: str


class NewKeyBody(ChangeKeyBody):
    """POST of a key of a tenant, or of one of its projects."""

    project_id: str | None = None


class RotateBody(AdminBody):
    """POST of keys/{id}/rotate: seconds that the old key still holds, by default a day; then when the new one ends."""

    grace_s: float | None = None
    expires_in_s: float | None = None


class PrefixBody(AdminBody):
    """PUT of a public prefix: how a conversation's first message begins or, if `is_raw`, a raw prompt."""

    model: Annotated[str, Field(min_length=1)]
    text: str
    is_raw: bool = False
