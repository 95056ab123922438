"""Bodies of the admin API. A field that is not known is refused: an operator's typo must not pass in silence."""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from gemline.cluster.access import MAX_LABEL, MAX_MODEL_NAME, MAX_MODELS, MAX_WEIGHT, MIN_WEIGHT, NAME_PATTERN
from gemline.cluster.access_store import MAX_EXPIRY_S, MAX_GRACE_S
from gemline.cluster.limits import MAX_LIMIT
from gemline.cluster.public_prefixes import MAX_BYTES
from gemline.gateway.http.bodies import Body
from gemline.gateway.http.schemas import FIRST_ERROR
from gemline.gateway.http.stated import stated

_ModelName = Annotated[str, stated(minLength=1, maxLength=MAX_MODEL_NAME)]
Models = Annotated[list[_ModelName], Field(max_length=1000), FIRST_ERROR, stated(maxItems=MAX_MODELS)]
Name = Annotated[str, stated(pattern=f"^{NAME_PATTERN}$")]
Limit = Annotated[int, stated(minimum=0, maximum=MAX_LIMIT)]
Lifetime = Annotated[float, stated(exclusiveMinimum=0, maximum=MAX_EXPIRY_S)]


class AdminBody(Body):
    """Any body here."""

    model_config = ConfigDict(extra="forbid")

    def given(self) -> dict[str, Any]:
        """The fields that were sent, null included, down to single limits."""
        return self.model_dump(exclude_unset=True)


class LimitsBody(AdminBody):
    """What a tenant, a project or a key may; null takes a limit away. The last two are for a `period` of UTC."""

    requests_per_min: Limit | None = None
    tokens_per_min: Limit | None = None
    concurrent_requests: Limit | None = None
    token_budget: Limit | None = None
    kv_byte_seconds: Limit | None = None
    period: Literal["day", "month"] = "month"


class ChangeProjectBody(AdminBody):
    """PATCH of a project: what is given changes, everything else stays. `models` null allows all."""

    label: Annotated[str, stated(maxLength=MAX_LABEL)] = ""
    limits: LimitsBody = LimitsBody()
    models: Models | None = None


class ChangeTenantBody(ChangeProjectBody):
    """PATCH of a tenant. `weight`: of its share while several wait. `band`: the most urgent it may ask for."""

    weight: Annotated[float, stated(minimum=MIN_WEIGHT, maximum=MAX_WEIGHT)] = 1.0
    band: Literal["priority", "default", "batch"] = "default"
    is_disabled: bool = False


class ChangeKeyBody(ChangeProjectBody):
    """PATCH of a key. `expires_in_s`: seconds from now, null: never."""

    expires_in_s: Lifetime | None = None


class NewTenantBody(ChangeTenantBody):
    """POST of a tenant."""

    id: Name


class NewProjectBody(ChangeProjectBody):
    """POST of a project."""

    id: Name


class NewKeyBody(ChangeKeyBody):
    """POST of a key of a tenant, or of one of its projects."""

    project_id: str | None = None


class RotateBody(AdminBody):
    """POST of keys/{id}/rotate: seconds that the old key still holds, by default a day; then when the new one ends."""

    grace_s: Annotated[float, stated(minimum=0, maximum=MAX_GRACE_S)] | None = None
    expires_in_s: Lifetime | None = None


class PrefixBody(AdminBody):
    """PUT of a public prefix: how a conversation's first message begins or, if `is_raw`, a raw prompt."""

    model: Annotated[str, Field(min_length=1)]
    text: Annotated[str, stated(minLength=1, maxLength=MAX_BYTES, description="At most 1 MiB of UTF-8.")]
    is_raw: bool = False
