"""What the admin API's OpenAPI document says of all its operations: its bodies, its key, and who acts."""

from gemline.cluster.access import NAME_PATTERN
from gemline.errors import InvalidRequest, RateLimited, Unauthenticated, Unavailable
from gemline.gateway.admin.answers import ANSWERS
from gemline.gateway.admin.credential import MAX_ACTOR
from gemline.gateway.admin.schemas import (
    ChangeKeyBody,
    ChangeProjectBody,
    ChangeTenantBody,
    NewKeyBody,
    NewProjectBody,
    NewTenantBody,
    PrefixBody,
    RotateBody,
)
from gemline.gateway.http.document import Front, OfMethod

_CHANGES = (ChangeTenantBody, ChangeProjectBody, ChangeKeyBody)
BODIES = (*_CHANGES, NewTenantBody, NewProjectBody, NewKeyBody, RotateBody, PrefixBody)
_ACTOR = {
    "name": "x-actor",
    "in": "header",
    "schema": {"type": "string", "maxLength": MAX_ACTOR},
    "description": "Who acts, for the audit.",
}
_NAME = {"type": "string", "pattern": f"^{NAME_PATTERN}$"}
_WITH_ACTOR = OfMethod((_ACTOR,), (InvalidRequest,))

ADMIN = Front(
    models=(*BODIES, *ANSWERS),
    key_name="admin key",
    key_description="The admin key of this gateway. A tenant's API key opens nothing here.",
    fails=(RateLimited, Unauthenticated, Unavailable),
    headers={},
    path_parameters={
        "tenant_id": {**_NAME, "description": "A tenant's name."},
        "project_id": {**_NAME, "description": "A project's name."},
        "key_id": {"type": "string", "description": "A key's id, which is no secret."},
        "name": {"type": "string", "description": "A public prefix's name: 1 to 64 printable characters."},
    },
    methods=dict.fromkeys(("get", "post", "put", "patch", "delete"), _WITH_ACTOR),
)
