"""The demo model that comes with gemline. Its card is README.md beside the weights; deploy/demo makes it."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "model"


def demo_model() -> Path:
    """The checkpoint that runs when none is named: the one shipped, or one of noise where none is (yet).

    Raises ConfigurationError when the one of noise cannot be written.
    """
    if is_shipped():
        return SHIPPED
    from gemline.demo.checkpoint import cached_demo

    return cached_demo()


def is_shipped() -> bool:
    """Whether the trained one is there."""
    return (SHIPPED / "model.safetensors").exists()
