"""How a ready-made checkpoint stores quantised matrices: which tensors, of what types and shapes. Knows no torch."""

from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

Shape = tuple[int, ...]
FLOATS = ("F32", "BF16", "F16")  # in safetensors' words, here and below
ONE_NUMBER: tuple[Shape, ...] = ((1,), (), (1, 1))
_INTEGERS = ("I32", "I64")
_WORD_BITS = 32


class Form(Enum):
    """One for each way to find the values; `unpack.py` has a function for each."""

    WORDS = "compressed-tensors, packed"
    BYTES = "compressed-tensors"
    GPTQ = "GPTQ"
    AWQ = "AWQ"


class Allowed(NamedTuple):
    """What a tensor of a checkpoint may be."""

    dtypes: tuple[str, ...]
    shapes: tuple[Shape, ...]
    is_optional: bool = False


@dataclass(frozen=True, slots=True)
class Layout:
    """weight[n, k] = (value[n, k] - zero[n, g]) * scale[n, g], where g is the group of input k."""

    form: Form
    bits: int
    group_size: int | None  # inputs that share a scale; None: all of a row
    is_symmetric: bool  # zero is the middle of the range
    is_float: bool = False  # values are e4m3
    has_one_scale: bool = False  # for the whole matrix
    is_ordered: bool = False  # a tensor says which group an input is of; otherwise groups are neighbours
    zero_offset: int = 0  # what has to be added to zeros as they are stored

    def __str__(self) -> str:
        values = "fp8" if self.is_float else f"int{self.bits}"
        scales = "one scale" if self.has_one_scale else f"groups of {self.group_size or 'a row'}"
        symmetry = "symmetric" if self.is_symmetric else "asymmetric"
        return f"{self.form.value} {values}, {scales}, {symmetry}{', by g_idx' if self.is_ordered else ''}"

    def num_groups(self, num_inputs: int) -> int:
        """Of a row."""
        return 1 if self.group_size is None else -(-num_inputs // self.group_size)

    def marker(self, name: str) -> str:
        """The tensor whose presence says that the weight of that name is quantised."""
        return f"{_module(name)}.{_MARKERS[self.form]}"

    def tensors(self, name: str, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        """All that stand for the weight of that name, by theirs."""
        found = {
            Form.WORDS: self._words,
            Form.BYTES: self._bytes,
            Form.GPTQ: self._gptq,
            Form.AWQ: self._awq,
        }[self.form](num_outputs, num_inputs)
        return {f"{_module(name)}.{suffix}": allowed for suffix, allowed in found.items()}

    def _num_words(self, num_values: int) -> int:
        return -(-num_values * self.bits // _WORD_BITS)

    def _words(self, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        groups = self.num_groups(num_inputs)
        found = {
            "weight_packed": _words((num_outputs, self._num_words(num_inputs))),
            "weight_scale": Allowed(FLOATS, ((num_outputs, groups),)),
            "weight_shape": Allowed(_INTEGERS, ((2,),)),
            "weight_g_idx": Allowed(_INTEGERS, ((num_inputs,),), is_optional=not self.is_ordered),
        }
        if not self.is_symmetric:
            found["weight_zero_point"] = _words((self._num_words(num_outputs), groups))
        return found

    def _bytes(self, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        scales = ONE_NUMBER if self.has_one_scale else ((num_outputs, self.num_groups(num_inputs)),)
        found = {
            "weight": Allowed(("F8_E4M3",) if self.is_float else ("I8",), ((num_outputs, num_inputs),)),
            "weight_scale": Allowed(FLOATS, scales),
            # Of activations that are quantised by numbers found beforehand. Ours are not, so these are not read.
            "input_scale": Allowed(FLOATS, ONE_NUMBER, is_optional=True),
            "input_zero_point": Allowed(("I8",), ONE_NUMBER, is_optional=True),
        }
        if not self.is_symmetric:
            found["weight_zero_point"] = Allowed(("I8",), scales)
        return found

    def _gptq(self, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        return {
            "qweight": _words((self._num_words(num_inputs), num_outputs)),
            "g_idx": Allowed(_INTEGERS, ((num_inputs,),), is_optional=not self.is_ordered),
            **self._zeros_and_scales(num_outputs, num_inputs),
        }

    def _awq(self, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        return {
            "qweight": _words((num_inputs, self._num_words(num_outputs))),
            **self._zeros_and_scales(num_outputs, num_inputs),
        }

    def _zeros_and_scales(self, num_outputs: int, num_inputs: int) -> dict[str, Allowed]:
        groups = self.num_groups(num_inputs)
        return {
            "qzeros": _words((groups, self._num_words(num_outputs))),
            "scales": Allowed(FLOATS, ((groups, num_outputs),)),
        }


_MARKERS = {Form.WORDS: "weight_packed", Form.BYTES: "weight_scale", Form.GPTQ: "qweight", Form.AWQ: "qweight"}


def _words(shape: Shape) -> Allowed:
    return Allowed(("I32",), (shape,))


def _module(name: str) -> str:
    return name.removesuffix(".weight")
