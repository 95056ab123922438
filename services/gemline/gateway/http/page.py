"""An OpenAPI document as one page of HTML, without a script and without anything to load. Pure."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

Node = Mapping[str, Any]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; width: 100%; margin: .5rem 0; }
td, th { border: 1px solid #ddd; padding: .25rem .5rem; text-align: left; vertical-align: top; }
code { font: 13px ui-monospace, monospace; overflow-wrap: anywhere; }
section { border-top: 1px solid #ccc; margin-top: 1.5rem; }
h3 code { font-size: 15px; }
"""
_BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "maxProperties": "at most {} entries",
    "pattern": "like {}",
    "const": "{!r}",
    "enum": "one of {}",
    "contentMediaType": "holds {}",
}


def rendered(document: Node) -> str:
    """The page: every operation, then every schema."""
    info, schemas = document["info"], document["components"]["schemas"]
    title = escape(f"{info['title']} {info['version']}")
    operations = [
        _operation(method, path, operation, document)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>",
        f"<h1>{title}</h1><p>{escape(info.get('summary', ''))}</p><p>{escape(info.get('description', ''))}</p>",
        *operations,
        "<h2>Schemas</h2>",
        *(_schema(name, schema) for name, schema in schemas.items()),
        "</html>",
    ]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Node, document: Node) -> str:
    is_open = operation.get("security", document["security"]) == []
    body = operation.get("requestBody")
    parts = [
        f"<section><h3><code>{method.upper()} {escape(path)}</code></h3><p>{escape(operation.get('description', ''))}",
        " <em>Open without a key.</em>" if is_open else "",
        _table("Parameter", _parameters(operation.get("parameters", ()))),
        f"<p>Body{'' if body['required'] else ' (may be left out)'}: {_contents(body)}</p>" if body else "",
        _table("Answer", _responses(operation["responses"])),
        "</section>",
    ]
    return "".join(parts)


def _parameters(parameters: Iterable[Node]) -> Iterable[tuple[str, str, str]]:
    for one in parameters:
        text = one.get("description") or one["schema"].get("description", "")
        yield f"<code>{escape(one['name'])}</code> in {one['in']}", _type(one["schema"]), escape(text)


def _responses(responses: Mapping[str, Node]) -> Iterable[tuple[str, str, str]]:
    for status, one in responses.items():
        headers = " ".join(f"<code>{escape(name)}</code>" for name in one.get("headers", ()))
        text = "<br>".join(escape(line) for line in one["description"].splitlines())
        yield status, _contents(one), f"{text}<br>Headers: {headers}"


def _contents(holder: Node) -> str:
    return "<br>".join(f"{escape(kind)}: {_type(one['schema'])}" for kind, one in holder.get("content", {}).items())


def _schema(name: str, schema: Node) -> str:
    required = schema.get("required", ())
    rows = [
        (
            f"<code>{escape(field)}</code>{' (required)' if field in required else ''}",
            _type(one),
            escape(one.get("description", "")),
        )
        for field, one in schema.get("properties", {}).items()
    ]
    head = f"<section id={escape(name)}><h3><code>{escape(name)}</code></h3>"
    head += f"<p>{escape(schema.get('description', ''))}</p>"
    return head + (_table("Field", rows) if rows else _type(schema)) + "</section>"


def _type(schema: Node) -> str:
    """A schema in a few words, with links to those that have a name."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f"<a href=#{name}>{name}</a>"
    for word in ("anyOf", "allOf"):
        if word in schema:
            return (" or " if word == "anyOf" else " with ").join(_type(one) for one in schema[word])
    if schema.get("type") == "array":
        return f"list of {_type(schema.get('items', {}))}{_bounds(schema)}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_type(schema['additionalProperties'])}{_bounds(schema)}"
    if "properties" in schema:
        return ", ".join(f"<code>{escape(name)}</code> {_type(one)}" for name, one in schema["properties"].items())
    return escape(str(schema.get("type", ""))) + _bounds(schema)


def _bounds(schema: Node) -> str:
    said = [text.format(schema[word]) for word, text in _BOUNDS.items() if word in schema]
    return escape(" " + ", ".join(said)) if said else ""


def _table(head: str, rows: Iterable[tuple[str, str, str]]) -> str:
    lines = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr><th>{head}</th><th>What it is</th><th></th></tr>{lines}</table>" if lines else ""
