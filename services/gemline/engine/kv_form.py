"""How keys and values of a sequence look outside a cache: which KV heads, in which dtype. Knows no torch."""

from dataclasses import dataclass
from typing import Self

from gemline.engine.config import Gemma2Config
from gemline.errors import InvalidRequest

FLOAT8 = "float8_e4m3"
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, FLOAT8: 1}


@dataclass(frozen=True, slots=True)
class KvForm:
    """Some positions of one layer as bytes: keys_TGK, then values_TGK, of the KV heads in `heads`."""

    heads: range
    head_dim: int
    dtype: str

    @classmethod
    def of(cls, config: Gemma2Config, cache_dtype: str, dtype: str = "", heads: range | None = None) -> Self:
        """The form asked for: of every KV head and in the cache's dtype where nothing is said.

        Raises InvalidRequest for heads that the model lacks, and for a dtype that is neither the cache's nor bfloat16
        nor float8_e4m3.
        """
        num_heads = config.num_key_value_heads
        heads = range(num_heads) if heads is None else heads
        if not 0 <= heads.start < heads.stop <= num_heads:
            raise InvalidRequest(f"KV heads [{heads.start}, {heads.stop}) of {num_heads} were asked for", param="heads")
        dtype = dtype or cache_dtype
        if dtype not in (allowed := {cache_dtype, "bfloat16", FLOAT8}):
            raise InvalidRequest(f"wire_dtype {dtype!r} is none of {', '.join(sorted(allowed))}", param="wire_dtype")
        return cls(heads, config.head_dim, dtype)

    @property
    def token_bytes(self) -> int:
        """Size of one position's keys and values in one layer."""
        return 2 * len(self.heads) * self.head_dim * _ITEM_BYTES[self.dtype]
