"""Query parameters of the admin API. One that is not known is refused, as a body's field is."""

from typing import Any

from starlette.requests import Request

from gemline.errors import InvalidRequest

Query = dict[str, str]


def read_query(request: Request, *names: str) -> Query:
    """Those that were given, each once. Raises InvalidRequest."""
    given = request.query_params.multi_items()
    query = dict(given)
    for name, _ in given:
        if name not in names:
            message = f"{name[:80]} is no parameter here; there are {', '.join(names)}"
            raise InvalidRequest(message, param=name[:80])
    if len(query) < len(given):
        raise InvalidRequest("a parameter is given more than once")
    return query


def number(query: Query, name: str, default: int) -> int:
    """Raises InvalidRequest for what is no number; ranges are for others to check."""
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidRequest(f"{name} must be a number, not {text[:80]!r}", param=name)
    return int(text)


def described(description: str, **rest: Any) -> dict[str, Any]:
    """The schema of a parameter, for the OpenAPI document."""
    return {"type": "string", "description": description, **rest}
