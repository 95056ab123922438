"""The loss of a training as a table on disk and as a picture (SVG, no plotting library needed)."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gemline.distill.training import Progress

_WIDTH, _HEIGHT, _MARGIN = 720, 400, 56
_COLOURS = ("#1f6feb", "#d1730b", "#2da44e", "#8250df", "#cf222e", "#57606a", "#0a7c86")
_NUM_TICKS = 5


class Point(NamedTuple):
    """Nats a learned token after that many tokens."""

    num_tokens: int
    cross_entropy: float
    divergence: float


class CurveFile:
    """A table that grows by a line now and then: tokens, cross entropy and divergence, with tabs between."""

    def __init__(self, path: Path, every: int = 20) -> None:
        self._path = path
        self._every = every

    def add(self, progress: Progress) -> None:
        """Notes every so many steps."""
        if progress.step % self._every == 0 or progress.num_tokens >= progress.of_tokens:
            with self._path.open("a") as file:
                file.write(f"{progress.num_tokens}\t{progress.cross_entropy:.5f}\t{progress.divergence:.5f}\n")


def read_curve(path: Path) -> list[Point]:
    """The points of a table; where a training was taken up again from a snapshot, the later ones."""
    points: list[Point] = []
    for line in path.read_text().splitlines():
        num_tokens, entropy, divergence = line.split("\t")[-3:]
        point = Point(int(num_tokens), float(entropy), float(divergence))
        while points and points[-1].num_tokens >= point.num_tokens:
            points.pop()
        points.append(point)
    return points


def draw(curves: dict[str, Sequence[Point]]) -> str:
    """An SVG of cross entropy over tokens, a line for each name."""
    points = [point for curve in curves.values() for point in curve]
    widest = max((point.num_tokens for point in points), default=1)
    highest = max((point.cross_entropy for point in points), default=1.0) or 1.0
    parts = [_axes(widest, highest)]
    for index, (name, curve) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        places = " ".join(f"{_x(p.num_tokens / widest):.1f},{_y(p.cross_entropy / highest):.1f}" for p in curve)
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{places}"/>')
        parts.append(_text(_WIDTH - _MARGIN, _MARGIN + 16 * index, name, "end", colour))
    size = f'width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
    ground = '<rect width="100%" height="100%" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{ground}{"".join(parts)}</svg>\n'


def _axes(widest: int, highest: float) -> str:
    parts = [f'<path d="M{_x(0)},{_y(1)} V{_y(0)} H{_x(1)}" fill="none" stroke="#57606a"/>']
    for tick in range(_NUM_TICKS + 1):
        share = tick / _NUM_TICKS
        parts.append(_text(_x(share), _y(0) + 18, f"{share * widest / 1e6:.3g}", "middle"))
        parts.append(_text(_x(0) - 6, _y(share) + 4, f"{share * highest:.2f}", "end"))
    parts.append(_text(_x(0.5), _HEIGHT - 12, "million tokens", "middle"))
    parts.append(_text(_MARGIN, 20, "cross entropy, nats a learned token", "start"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#24292f") -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    style = f'font-family="sans-serif" font-size="12" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escaped}</text>'


def _x(share: float) -> float:
    return _MARGIN + share * (_WIDTH - 2 * _MARGIN)


def _y(share: float) -> float:
    return _HEIGHT - _MARGIN - share * (_HEIGHT - 2 * _MARGIN)
