"""How many bytes weights take in each form that an engine keeps them in. Formats: gemline_kernels/quantize.py."""

from typing import Literal, NamedTuple, get_args

from gemline.errors import ConfigurationError

WeightForm = Literal["bf16", "fp8", "int8", "int4"]
CacheForm = Literal["bf16", "fp8"]
CACHE_BYTES: dict[CacheForm, int] = {"bf16": 2, "fp8": 1}  # of one key's or value's number
_GROUP = 128  # inputs that share a scale in int4


class Matrix(NamedTuple):
    """Of a linear layer, [rows, columns]."""

    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Numbers in it."""
        return self.rows * self.columns

    def num_bytes(self, form: WeightForm) -> int:
        """As it is packed, with its scales."""
        match form:
            case "bf16":
                return 2 * self.size
            case "fp8" | "int8":
                return self.size + 4 * self.rows
            case "int4":
                return (self.size + 1) // 2 + 2 * self.rows * -(-self.columns // _GROUP)


def weight_form(name: str) -> WeightForm:
    """Raises ConfigurationError for what is none."""
    form: WeightForm
    for form in get_args(WeightForm):
        if form == name:
            return form
    raise ConfigurationError(f"weights must be one of {', '.join(get_args(WeightForm))}, is {name!r}", param="weights")


def cache_form(name: str) -> CacheForm:
    """Raises ConfigurationError for what is none."""
    form: CacheForm
    for form in get_args(CacheForm):
        if form == name:
            return form
    raise ConfigurationError(f"kv must be one of {', '.join(get_args(CacheForm))}, is {name!r}", param="kv")
