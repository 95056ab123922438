"""What is measured against float64, and what is said when it is too far away."""

import torch


class SelfCheckFailedError(ValueError):
    """A backend's operation is wrong on this machine; the message names it, the case, the error and its bound."""


def rounding(dtype: torch.dtype) -> float:
    """What a result may be off by, relative to itself, for having been rounded to the dtype, with a little to spare."""
    return 2.0**-8 if dtype == torch.bfloat16 else 2.0**-20


def compare(
    operation: str, case: str, actual: torch.Tensor, expected: torch.Tensor, bound: torch.Tensor | float
) -> None:
    """Raises SelfCheckFailedError unless each element of `actual` is within `bound` of the float64 `expected`.

    `actual` may be on any device; the others are on the CPU.
    """
    if actual.shape != expected.shape:
        raise SelfCheckFailedError(f"{operation}, {case}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    if actual.numel() == 0:
        return
    actual = actual.cpu()
    error = (actual.double() - expected).abs()
    excess = error - bound
    worst = int(excess.nan_to_num(nan=torch.inf).argmax())
    if not excess.flatten()[worst] <= 0:  # also when it is NaN
        limit = bound if isinstance(bound, float) else float(bound.expand_as(error).flatten()[worst])
        raise SelfCheckFailedError(
            f"{operation}, {case}: element {worst} is {float(actual.flatten()[worst]):.6g}, not"
            f" {float(expected.flatten()[worst]):.6g}: off by {float(error.flatten()[worst]):.3g}, at most"
            f" {limit:.3g} is right"
        )
