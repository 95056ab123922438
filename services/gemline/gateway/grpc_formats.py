"""What an answer must look like and which functions it may call, from the public messages to the core's words."""

import json
from typing import Any

from gemline.engine.constraint import Constraint, Syntax
from gemline.errors import InvalidRequest
from gemline.gateway.constraints import json_object, json_schema, of_text
from gemline.gateway.tools import Tool, ToolUse, check_tools
from gemline.v1 import inference_pb2 as pb


def constraint(message: pb.ResponseFormat) -> Constraint | None:
    """None where nothing is asked for. Raises InvalidRequest naming the field."""
    match message.WhichOneof("kind"):
        case "json_object":
            return json_object() if message.json_object else None
        case "json_schema":
            schema = _object(message.json_schema, "response_format")
            return json_schema(schema, strict=message.strict)
        case "regex":
            return of_text(Syntax.REGEX, message.regex)
        case "grammar":
            return of_text(Syntax.GRAMMAR, message.grammar)
        case _:
            return None


def tool_use(message: pb.ToolOptions) -> ToolUse | None:
    """None where no function is there or none may be called. Raises InvalidRequest naming the field."""
    if not message.tools or message.choice == pb.TOOL_CHOICE_NONE:
        return None
    use = ToolUse(
        tools=tuple(map(_tool, message.tools)),
        choice="required" if message.choice == pb.TOOL_CHOICE_REQUIRED else "auto",
        name=message.name or None,
        parallel=not message.single,
    )
    check_tools(use)
    return use


def _tool(message: pb.Tool) -> Tool:
    if not message.parameters:
        return Tool(message.name, message.description, strict=message.strict)
    return Tool(message.name, message.description, _object(message.parameters, "tools"), message.strict)


def _object(text: str, param: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{param}: the schema is no JSON: {str(error)[:200]}", param=param) from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"{param}: the schema must be a JSON object", param=param)
    return value
