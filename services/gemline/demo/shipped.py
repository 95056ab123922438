"""The demo model that comes with gemline. Its card is README.md beside the weights; deploy/demo makes it."""

from pathlib import Path

SHIPPED = Path(__file__).parent / "model"
