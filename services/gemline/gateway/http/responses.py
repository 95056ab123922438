"""Whole JSON answers."""

import json
from collections.abc import Mapping

from starlette.responses import Response


def json_response(content: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Compact JSON in ASCII: no text, however broken, can fail to be encoded."""
    body = json.dumps(content, separators=(",", ":")).encode()
    return Response(body, status_code=status, headers=headers, media_type="application/json")
