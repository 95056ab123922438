"""`tools`, `tool_choice` and messages about calls, in OpenAI's bodies."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from gemline.gateway.http.bodies import Body
from gemline.gateway.http.stated import stated
from gemline.gateway.tools import NAME_PATTERN, Tool, ToolUse, check_tools


class FunctionBody(Body):
    """A function that may be called; `parameters` is a JSON schema."""

    name: Annotated[str, stated(pattern=f"^{NAME_PATTERN}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ToolBody(Body):
    """One of `tools`."""

    type: Literal["function"]
    function: FunctionBody


class NamedFunction(Body):
    """A function by its name."""

    name: str


class NamedTool(Body):
    """The function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Body):
    """What was called; `arguments` is a JSON object as text."""

    name: str
    arguments: str


class CallBody(Body):
    """A call in an earlier turn of the model's."""

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction


ToolChoice = Literal["none", "auto", "required"] | NamedTool


def tool_use_of(tools: Sequence[ToolBody] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse | None:
    """None where no function is there or none may be called. Raises InvalidRequest, naming the field."""
    if not tools:
        return None
    use = ToolUse(
        tools=tuple(_tool(body.function) for body in tools),
        choice="required" if choice == "required" else "auto",
        name=choice.function.name if isinstance(choice, NamedTool) else None,
        parallel=parallel is not False,
    )
    check_tools(use)
    return None if choice == "none" else use


def _tool(body: FunctionBody) -> Tool:
    description, strict = body.description or "", bool(body.strict)
    if body.parameters is None:
        return Tool(body.name, description, strict=strict)
    return Tool(body.name, description, body.parameters, strict)
