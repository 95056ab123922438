"""Which part of a model a rank of a tensor-parallel group has. Arithmetic on shapes; knows no torch and no network.

Column-parallel, where each rank has some outputs: queries, keys, values, gate and up. Row-parallel, where each has some
inputs and the ranks' results are summed: the attention's output and down. Embedding and head are divided by tokens.
"""

from dataclasses import dataclass, replace

from gemline.engine.config import Gemma2Config
from gemline.errors import ConfigurationError
from gemline_kernels.shares import tokens_of

Cut = tuple[slice, ...]
_WHOLE = slice(None)


@dataclass(frozen=True, slots=True)
class Part:
    """One rank's. Raises ConfigurationError, naming both numbers, when the model cannot be divided so."""

    config: Gemma2Config  # of the whole model
    rank: int = 0
    num_ranks: int = 1

    def __post_init__(self) -> None:
        check_degree(self.config, self.num_ranks)

    @property
    def own_config(self) -> Gemma2Config:
        """The shape of its layers; the vocabulary is still the whole."""
        return replace(
            self.config,
            num_attention_heads=len(self.heads),
            num_key_value_heads=len(self.groups),
            intermediate_size=len(self.inner),
        )

    @property
    def heads(self) -> range:
        """Its query heads."""
        return self._share(self.config.num_attention_heads)

    @property
    def groups(self) -> range:
        """Its key-value heads: those that its query heads read, so ranks beyond their number have copies."""
        per_group = self.config.num_attention_heads // self.config.num_key_value_heads
        return range(self.heads.start // per_group, (self.heads.stop - 1) // per_group + 1)

    @property
    def inner(self) -> range:
        """Of the MLP's width."""
        return self._share(self.config.intermediate_size)

    @property
    def tokens(self) -> range:
        """Of the vocabulary: shares that differ by one at most."""
        return tokens_of(self.rank, self.num_ranks, self.config.vocab_size)

    def cut(self, name: str) -> Cut:
        """What it has of a checkpoint's tensor, by its Hugging Face name: an index into it."""
        width = self.config.head_dim
        match name.split(".")[-3:]:
            case [_, "q_proj", _]:
                return (_rows(self.heads, width),)
            case [_, "k_proj" | "v_proj", _]:
                return (_rows(self.groups, width),)
            case [_, "o_proj", "weight"]:
                return (_WHOLE, _rows(self.heads, width))
            case [_, "gate_proj" | "up_proj", _]:
                return (_rows(self.inner),)
            case [_, "down_proj", "weight"]:
                return (_WHOLE, _rows(self.inner))
            case [*_, "embed_tokens" | "lm_head", _]:
                return (_rows(self.tokens),)
        return ()

    def adds(self, name: str) -> bool:
        """Whether a bias is this rank's to add: what is summed over ranks has it once."""
        return self.rank == 0 or not name.endswith("o_proj.bias")

    def _share(self, size: int) -> range:
        each = size // self.num_ranks
        return range(self.rank * each, (self.rank + 1) * each)


def check_degree(config: Gemma2Config, num_ranks: int) -> None:
    """Raises ConfigurationError, naming both numbers, when the model cannot be divided among so many."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if num_ranks < 1:
        raise ConfigurationError(f"tensor_parallel must be at least 1, is {num_ranks}", param="tensor_parallel")
    for name, size in (("num_attention_heads", heads), ("intermediate_size", config.intermediate_size)):
        if size % num_ranks:
            raise ConfigurationError(
                f"tensor_parallel {num_ranks} does not divide {name} {size}", param="tensor_parallel"
            )
    if groups % num_ranks and num_ranks % groups:
        raise ConfigurationError(
            f"tensor_parallel {num_ranks} neither divides num_key_value_heads {groups} nor is a multiple of it",
            param="tensor_parallel",
        )


def _rows(at: range, width: int = 1) -> slice:
    return slice(at.start * width, at.stop * width)
