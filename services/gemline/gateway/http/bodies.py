"""What all bodies of OpenAI's clients have in common. Knows no field."""

from collections.abc import Mapping
from typing import ClassVar

from pydantic import BaseModel, ConfigDict

# Fields that would change the answer and that we cannot honor, with the values that ask for nothing, as null does.
Unsupported = Mapping[str, tuple[object, ...]]


class Body(BaseModel):
    """Any body: types are taken as they are sent (no "5" for 5); fields we do not know are passed over."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, allow_inf_nan=False)

    unsupported: ClassVar[Unsupported] = {}
