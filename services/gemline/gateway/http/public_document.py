"""What the public API's OpenAPI document says of all its operations."""

from typing import Any

from gemline.errors import (
    Conflict,
    Forbidden,
    InvalidRequest,
    QuotaExceeded,
    RateLimited,
    Unauthenticated,
    Unavailable,
)
from gemline.gateway.http.answers import ANSWERS
from gemline.gateway.http.document import Front, OfMethod
from gemline.gateway.http.idempotency import MAX_KEY
from gemline.gateway.http.keys import OPEN_PATHS
from gemline.gateway.http.schemas import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    ForkBody,
    SessionBody,
    TokenizeBody,
    TurnBody,
)

ABOUT = (
    "Every path is closed without a key but three probes. At any other path a key is answered 404 `not_found`, for any"
    " other method 405 `method_not_allowed`; a head of a request that is no HTTP gets a 400 without JSON."
)
BODIES = (ChatBody, TurnBody, CompletionBody, SessionBody, ForkBody, TokenizeBody, DetokenizeBody)


def _header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": description, "schema": {"type": "string", **schema}}


_TRACE = _header("traceparent", "W3C trace context, which our spans continue.")
_ONCE = _header(
    "Idempotency-Key",
    "Sent again within ten minutes with the same body, the request gets the first one's answer.",
    maxLength=MAX_KEY,
)
_PATIENCE = _header(
    "x-stainless-read-timeout",
    "Seconds that the client waits for a byte: a request whose turn would come later is refused at once.",
)
_STANDING = {
    f"x-ratelimit-{what}-{kind}": {"description": f"{said} {kind} a minute, where they are limited."}
    for kind in ("requests", "tokens")
    for what, said in (
        ("limit", "The limit of"),
        ("remaining", "What is left of"),
        ("reset", "When all of the limit is there again, as `<seconds>s`, of"),
    )
}
_REPLAYED = {"idempotent-replayed": {"description": "`true` where an Idempotency-Key brought an earlier answer."}}

PUBLIC = Front(
    models=(*BODIES, *ANSWERS),
    key_name="key",
    key_description="An API key of a tenant.",
    fails=(Unauthenticated, Forbidden, RateLimited, QuotaExceeded, Unavailable),
    headers=_STANDING,
    path_parameters={
        "model_id": {"type": "string", "description": "May hold slashes, as on Hugging Face."},
        "session_id": {"type": "string", "description": "`ses_` and 32 hex digits."},
    },
    methods={"post": OfMethod((_ONCE, _PATIENCE, _TRACE), (InvalidRequest, Conflict), _REPLAYED)},
    open_paths=OPEN_PATHS,
)
