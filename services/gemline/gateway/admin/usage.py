"""/admin/v1/usage: what was used, as records and as sums."""

from collections.abc import AsyncIterator
from dataclasses import asdict

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from gemline.cluster.moments import moment_ms
from gemline.cluster.operations import Operations
from gemline.cluster.usage import MAX_RECORDS, MAX_SCANNED, UsageFilter
from gemline.cluster.usage_export import EXPORTS, as_values
from gemline.errors import InvalidRequest
from gemline.gateway.admin.answers import UsagePage, UsageSums
from gemline.gateway.admin.queries import Query, described, number, read_query
from gemline.gateway.admin.views import list_view
from gemline.gateway.http.docs import asks, gives
from gemline.gateway.http.responses import json_response

_MEDIA_TYPES = {"csv": "text/csv; charset=utf-8", "jsonl": "application/jsonl"}
_TEXTS = {
    _MEDIA_TYPES["csv"]: {"type": "string", "description": "A row for each record, behind one of names."},
    _MEDIA_TYPES["jsonl"]: {"type": "string", "description": "A JSON object on a line for each record."},
}
_MOMENT = "ISO 8601, of UTC unless it says another zone; seconds since 1970; or a span ago, such as 7d"
_FILTERS = {
    "tenant": described("of this tenant alone"),
    "project": described("of projects of this name alone"),
    "key_id": described("of this key alone"),
    "since": described(f"settled then or later: {_MOMENT}"),
    "until": described(f"settled before then: {_MOMENT}"),
}
_PAGING = {
    "format": described("a page of records; or all of them, streamed", enum=["json", *EXPORTS], default="json"),
    "limit": {"type": "integer", "minimum": 1, "maximum": MAX_RECORDS, "default": MAX_RECORDS},
    "after": described("`next` of the page before, or the entry_id of a record: what follows it"),
}
_AFTER_SUMS = described(f"`next` of the page before; a page is of {MAX_SCANNED} records at most")


def usage_router(operations: Operations) -> APIRouter:
    """A record for each settled request; the oldest go first when there are a million."""
    router = APIRouter(tags=["usage"])

    @router.get("/usage", openapi_extra=asks(**_FILTERS, **_PAGING) | gives(UsagePage, texts=_TEXTS))
    async def list_usage(request: Request) -> Response:
        """The oldest first. As json a page; a page may have fewer records than `limit` and still not be the last.

        As csv or jsonl all of them, streamed; a stream that cannot be ended properly breaks off.
        """
        query = read_query(request, *_FILTERS, *_PAGING)
        wanted, after = _filter(query), query.get("after", "")
        form = query.get("format", "json")
        if form == "json":
            page = await operations.usage.page(wanted, number(query, "limit", MAX_RECORDS), after)
            return json_response(list_view([as_values(entry) for entry in page.entries], page.last_id))
        if form not in EXPORTS:
            raise InvalidRequest(f"format must be json, {', '.join(EXPORTS)}, not {form[:80]!r}", param="format")
        if "limit" in query:
            raise InvalidRequest(f"limit is for format json; {form} is all of it", param="limit")
        return await _streamed(EXPORTS[form](operations.usage.pages(wanted, after)), form)

    @router.get("/usage/summary", openapi_extra=asks(**_FILTERS, after=_AFTER_SUMS) | gives(UsageSums))
    async def summarize_usage(request: Request) -> Response:
        """Sums by tenant and model, of so many records at a time: those of all pages are to be added up."""
        query = read_query(request, *_FILTERS, "after")
        page = await operations.usage.sums_page(_filter(query), query.get("after", ""))
        return json_response(list_view([asdict(one) for one in page.sums], page.last_id))

    return router


def _filter(query: Query) -> UsageFilter:
    moments = {name: moment_ms(query[name], name) for name in ("since", "until") if name in query}
    return UsageFilter(
        tenant=query.get("tenant", ""),
        project=query.get("project", ""),
        key_id=query.get("key_id", ""),
        since_ms=moments.get("since", 0),
        until_ms=moments.get("until"),
    )


async def _streamed(pieces: AsyncIterator[str], form: str) -> Response:
    """Once the first piece is there: until then an error can still be told."""
    first = await anext(pieces, "")

    async def all_pieces() -> AsyncIterator[str]:
        yield first
        async for piece in pieces:
            yield piece

    headers = {"content-disposition": f'attachment; filename="usage.{form}"'}
    return StreamingResponse(all_pieces(), headers=headers, media_type=_MEDIA_TYPES[form])
