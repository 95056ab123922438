"""The loss as a table and as a picture."""

from pathlib import Path
from xml.parsers import expat

from gemline.distill.curve import CurveFile, Point, draw, read_curve
from gemline.distill.training import Progress


def elements(svg: str) -> list[str]:
    """The names of all elements in their order; raises ExpatError unless it is well-formed."""
    names: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, attributes: names.append(name)
    parser.Parse(svg, True)
    return names


def progress(step: int) -> Progress:
    return Progress(step, step * 10, 100, 4.0 / step, 0.5, 1000.0)


def test_a_table_has_every_so_many_steps_and_the_last(tmp_path: Path) -> None:
    curve = CurveFile(tmp_path / "loss.tsv", every=4)
    for step in range(1, 11):
        curve.add(progress(step))
    assert [point.num_tokens for point in read_curve(tmp_path / "loss.tsv")] == [40, 80, 100]


def test_what_was_trained_again_from_a_snapshot_replaces_what_it_was_before(tmp_path: Path) -> None:
    path = tmp_path / "loss.tsv"
    path.write_text("10\t3.0\t0.0\n20\t2.0\t0.0\n30\t1.0\t0.0\n20\t2.5\t0.0\n25\t2.2\t0.0\n")
    assert [point.num_tokens for point in read_curve(path)] == [10, 20, 25]
    assert read_curve(path)[1].cross_entropy == 2.5


def test_the_picture_has_a_line_and_a_name_for_each_curve() -> None:
    svg = draw({"a < b": [Point(0, 3.0, 0.0), Point(10, 1.0, 0.0)], "other": [Point(5, 2.0, 0.0)]})
    assert elements(svg).count("polyline") == 2
    assert "a &lt; b" in svg


def test_a_picture_of_nothing_is_a_picture() -> None:
    assert elements(draw({}))[0] == "svg"
