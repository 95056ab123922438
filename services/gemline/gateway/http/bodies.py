"""What all bodies of OpenAI's clients have in common. Knows no field."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler
from pydantic_core import CoreSchema

# Fields that would change the answer and that we cannot honor, with the values that ask for nothing, as null does.
Unsupported = Mapping[str, tuple[object, ...]]


class Body(BaseModel):
    """Any body: types are taken as they are sent (no "5" for 5); fields we do not know are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    unsupported: ClassVar[Unsupported] = {}

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """With the fields that are not supported: these too are checked."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema).setdefault("properties", {})
        for name, harmless in cls.unsupported.items():
            properties[name] = {"enum": [*harmless, None], "description": "Not supported: values that ask for nothing."}
        return schema
