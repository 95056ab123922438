"""The forms of weights, and of keys and values, that a GPU is planned with, by name."""

from gemline.engine.footprint import CacheForm, WeightForm
from gemline.errors import ConfigurationError

WEIGHTS: tuple[WeightForm, ...] = ("bf16", "fp8", "int8", "int4")
CACHES: tuple[CacheForm, ...] = ("bf16", "fp8")


def weight_form(name: str) -> WeightForm:
    """Raises ConfigurationError for what is none."""
    for form in WEIGHTS:
        if form == name:
            return form
    raise ConfigurationError(f"weights must be one of {', '.join(WEIGHTS)}, is {name!r}", param="weights")


def cache_form(name: str) -> CacheForm:
    """Raises ConfigurationError for what is none."""
    for form in CACHES:
        if form == name:
            return form
    raise ConfigurationError(f"kv must be one of {', '.join(CACHES)}, is {name!r}", param="kv")
