"""Sizes of the published Gemma 2 models, and a fraction of each for where the kernels are interpreted."""

from dataclasses import dataclass, replace

from support.device import IS_INTERPRETED


@dataclass(frozen=True)
class Model:
    """Sizes, by the letters of tensor names where there is one."""

    name: str
    width: int  # D
    inner: int  # F
    num_layers: int  # L
    num_heads: int  # H
    num_groups: int  # G
    head_dim: int  # K
    query_scalar: int  # scores are divided by its root
    vocab_size: int = 256_000  # V
    window: int = 4096

    @property
    def scale(self) -> float:
        """Of scores."""
        return float(self.query_scalar**-0.5)

    @property
    def num_parts(self) -> int:
        """Heads of a joined projection: H queries, G keys, G values."""
        return self.num_heads + 2 * self.num_groups

    def window_of(self, layer: int) -> int | None:
        """Local and global layers take turns, a local one first."""
        return None if layer % 2 else self.window


GEMMA_2B = Model("2b", 2304, 9216, 26, 8, 4, 256, 256)
GEMMA_9B = Model("9b", 3584, 14336, 42, 16, 8, 256, 256)
GEMMA_27B = Model("27b", 4608, 36864, 46, 32, 16, 128, 144)
PUBLISHED = (GEMMA_2B, GEMMA_9B, GEMMA_27B)


def shrunk(model: Model) -> Model:
    """Sizes that an interpreter can do, in the same proportions."""
    return replace(
        model,
        width=model.width // 48,
        inner=model.inner // 128,
        num_layers=2,
        num_heads=max(model.num_heads // 4, 4),
        num_groups=max(model.num_groups // 4, 2),
        head_dim=model.head_dim // 8,
        query_scalar=model.query_scalar // 8,
        vocab_size=600,
        window=96,
    )


MODELS = tuple(shrunk(model) for model in PUBLISHED) if IS_INTERPRETED else PUBLISHED
