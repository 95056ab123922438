"""Makes Triton's interpreter compute bfloat16 and fp8 as a GPU does, in less time than it takes by itself.

The interpreter (3.9) keeps a bfloat16 as the integer of its bits: products multiply those, sums add them, and what
becomes a bfloat16 is cut off instead of rounded. Here values are widened to float32 for products, rounded to nearest
when they become bfloat16, saturated when they become fp8, and any other arithmetic on bfloat16 is an error: kernels
have to widen first, and so what is checked is what a GPU would do.

A quarter of the interpreter's time went into looking through all of Triton's language at each call of a helper, though
its parts had been replaced when the kernel began, and into a new table of numpy's types for each value. Here each
helper's language is looked through once, and its parts stay replaced.

Where in its grid a program stands is a variable of the whole process: ranks that are threads launch in turn.
"""

import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
import triton.language as tl
from numpy.typing import NDArray
from triton.runtime import interpreter

Array = NDArray[Any]

_Builder: Any = interpreter.InterpreterBuilder
_Handle: Any = interpreter.TensorHandle
_Scope: Any = interpreter._LangPatchScope
_TORCH = {tl.bfloat16: torch.bfloat16, tl.float8e4nv: torch.float8_e4m3fn, tl.float8e5: torch.float8_e5m2}
_BITS = {2: torch.int16, 1: torch.uint8}


def _widened(handle: Any) -> Array:
    """The values of a handle; those of a type that numpy lacks as float32."""
    dtype = _TORCH.get(handle.dtype.scalar)
    if dtype is None:
        return np.asarray(handle.data)
    bits = torch.from_numpy(np.ascontiguousarray(handle.data).view(f"i{dtype.itemsize}"))
    return bits.view(dtype).float().numpy()


def _narrowed(values: Array, scalar: Any) -> Any:
    """A handle of that type of those values."""
    dtype = _TORCH.get(scalar)
    if dtype is None:
        return _Handle(values.astype(interpreter._get_np_dtype(scalar)), scalar)
    exact = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))
    if dtype.itemsize == 1:  # saturating, as the GPU's conversion
        largest = torch.finfo(dtype).max
        exact = exact.clamp(-largest, largest)
    return _Handle(exact.to(dtype).view(_BITS[dtype.itemsize]).numpy().view(f"u{dtype.itemsize}"), scalar)


def _cast(_: Any, source: Any, target: Any) -> Any:
    if source.dtype.scalar == target.scalar:
        return source
    return _narrowed(_widened(source), target.scalar)


def _dot(_: Any, left: Any, right: Any, total: Any, *__: Any) -> Any:
    product = np.matmul(_widened(left).astype(total.data.dtype), _widened(right).astype(total.data.dtype))
    return _Handle(product + total.data, total.dtype.scalar)


def _refusing(operation: Callable[..., Any]) -> Callable[..., Any]:
    def checked(builder: Any, *operands: Any) -> Any:
        for operand in operands:
            if getattr(operand, "dtype", None) is not None and operand.dtype.scalar in _TORCH:
                raise TypeError(f"arithmetic on {operand.dtype.scalar}: widen it to float32 first")
        return operation(builder, *operands)

    return checked


def mend_interpreter() -> None:
    """For the rest of this process."""
    patch, find_type = cache(interpreter._patch_lang), interpreter._get_np_dtype
    found: dict[str, Any] = {}

    def patch_for_good(function: Callable[..., Any]) -> Any:
        patch(function)
        return _Scope()  # with nothing to undo

    def numpy_type(dtype: Any) -> Any:
        name = dtype.scalar.name
        if name not in found:
            found[name] = find_type(dtype)
        return found[name]

    launch, launching = interpreter.GridExecutor.__call__, threading.Lock()

    def launch_in_turn(*arguments: Any, **named: Any) -> None:
        with launching:
            launch(*arguments, **named)

    interpreter.GridExecutor.__call__ = launch_in_turn
    interpreter._patch_lang = patch_for_good
    interpreter._get_np_dtype = numpy_type
    _Builder.cast_impl = _cast
    _Builder.create_fp_to_fp = lambda builder, source, target, _rounding: _cast(builder, source, target)
    _Builder.create_dot = _dot
    _Builder.binary_op = _refusing(_Builder.binary_op)
    _Builder.unary_op = _refusing(_Builder.unary_op)
