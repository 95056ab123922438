"""What an answer must look like and which functions it may call, in OpenAI's words, as the public API's messages."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from gemline.errors import InvalidRequest
from gemline.v1 import inference_pb2 as pb

_CHOICES = {"auto": pb.TOOL_CHOICE_AUTO, "required": pb.TOOL_CHOICE_REQUIRED, "none": pb.TOOL_CHOICE_NONE}


def response_format(wanted: Mapping[str, Any]) -> pb.ResponseFormat:
    """From {"type": ...} and the field named like the type. Raises InvalidRequest for anything else."""
    kind = wanted.get("type")
    match kind, wanted.get(str(kind)):
        case "text", _:
            return pb.ResponseFormat()
        case "json_object", _:
            return pb.ResponseFormat(json_object=True)
        case "json_schema", {"schema": Mapping() as schema, **rest}:
            text = _json(schema, "response_format")
            return pb.ResponseFormat(json_schema=text, strict=bool(rest.get("strict")))
        case "regex", str() as text:
            return pb.ResponseFormat(regex=text)
        case "grammar", str() as text:
            return pb.ResponseFormat(grammar=text)
    raise InvalidRequest(
        'response_format must have the type "text", "json_object", "json_schema", "regex" or "grammar", and but for the'
        " first two a field of that name",
        param="response_format",
    )


def tool_options(tools: Sequence[Mapping[str, Any]], choice: object, parallel: bool | None) -> pb.ToolOptions:
    """From OpenAI's tools, tool_choice and parallel_tool_calls. Raises InvalidRequest, naming the field."""
    options = pb.ToolOptions(tools=[_tool(index, tool) for index, tool in enumerate(tools)], single=parallel is False)
    match choice:
        case None:
            pass
        case str() if choice in _CHOICES:
            options.choice = _CHOICES[choice]
        case {"type": "function", "function": {"name": str() as name}}:
            options.name = name
        case _:
            names = ", ".join(_CHOICES)
            message = f"tool_choice must be one of {names}, or name a function, not {str(choice)[:80]!r}"
            raise InvalidRequest(message, param="tool_choice")
    return options


def _tool(index: int, tool: Mapping[str, Any]) -> pb.Tool:
    function = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        message = f'tools[{index}] must be {{"type": "function", "function": {{"name": ..., ...}}}}'
        raise InvalidRequest(message, param="tools")
    given = cast(Mapping[str, Any], function)
    parameters = given.get("parameters")
    return pb.Tool(
        name=given["name"],
        description=given.get("description") or "",
        parameters="" if parameters is None else _json(parameters, "tools"),
        strict=bool(given.get("strict")),
    )


def _json(value: object, param: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param}: the schema cannot be written as JSON: {error}", param=param) from None
