"""What fp8 keys and values are divided by where they are written, and multiplied by where they are read. No torch."""

from typing import NamedTuple

FLOAT8_MAX = 448.0  # of e4m3, which has no infinity
LEAST_SCALE = 2.0**-120  # what a smaller one would be divided by is no float32 any more


class Scales(NamedTuple):
    """Of one layer's keys and of its values; 1 in the other dtypes."""

    keys: float = 1.0
    values: float = 1.0


UNSCALED = Scales()
