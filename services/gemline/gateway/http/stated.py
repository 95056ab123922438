"""What a field's schema says besides its type. For values that are checked elsewhere: here stand the same numbers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from gemline.gateway.sampling import Range


@dataclass(frozen=True, slots=True, eq=False)  # annotations are hashed, dicts are not
class Stated:
    """For the annotation of a type: words of JSON Schema that are added to its own."""

    facts: Mapping[str, Any]

    def __get_pydantic_json_schema__(self, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(core_schema), **self.facts}


def stated(**facts: Any) -> Stated:
    """These words."""
    return Stated(facts)


def within(allowed: Range) -> Stated:
    """A number's range."""
    return Stated({"minimum": allowed.least, "maximum": allowed.high})
