"""What is kept of a run on a GPU: targets, the floor they are held to, and all that was measured before a fault."""

import math
import sys
from pathlib import Path

import pytest
from bench.gpu.machine import datasheet, file_name
from bench.gpu.report import DONE, RUNNING, Report, Row, Target
from bench.gpu.roofline import Step
from bench.gpu.run import run_all
from support.published import PUBLISHED

H100 = (3.35e12, 990e12)


def test_a_report_is_read_as_it_was_written(tmp_path: Path) -> None:
    paths = [tmp_path / "a" / "report.json", tmp_path / "report.json"]
    report = Report(paths, {"gpu": {}}, {"decode": DONE}, ["decode: 2b"], ["decode: 9b: failed"])
    report.rows = [
        Row("2b", 1e-3, {"of_copy": 0.5, "rate": math.nan}, Target("of_copy", 0.9), "decode"),
        Row("27b", 2e-3, {}, None, "decode"),
    ]
    report.write()
    assert paths[0].read_text() == paths[1].read_text()
    again = Report.at(paths[1:])
    assert repr(again.rows) == repr(report.rows)
    assert (again.about, again.sections, again.tried, again.notes) == (
        report.about, report.sections, report.tried, report.notes,
    )  # fmt: skip


def test_the_table_says_what_was_met_and_what_was_missed() -> None:
    target = Target("of_copy", 0.9)
    rows = [Row(name, 1.0, {"of_copy": share}, target, "decode") for name, share in (("good", 0.95), ("poor", 0.5))]
    rows.append(Row("unknown", 1.0, {}, target, "decode"))
    table = Report([], sections={"decode": DONE}, rows=rows).table()
    good, poor = table.splitlines()[1:3]
    assert good.endswith("95.0% of copy  [target 90.0% of copy: met]")
    assert poor.endswith("50.0% of copy  [target 90.0% of copy: MISSED]")
    assert "unknown" not in table
    assert table.endswith("1 of 2 targets met")


def test_of_settings_the_first_and_the_fastest_are_shown() -> None:
    seconds = {"as it is": 5.0} | {f"tile {number}": float(number) for number in range(9, 0, -1)}
    rows = [Row(f"2b | {name}", value, section="tune") for name, value in seconds.items()]
    shown = Report([], sections={"tune": DONE}, rows=rows).table().splitlines()[1:-1]
    assert [line.split(" | ")[1][:8].strip() for line in shown] == ["as it is", *(f"tile {n}" for n in range(1, 6))]


@pytest.mark.parametrize(
    ("model", "quantization", "batch", "context", "cache_bytes", "tokens_per_s"),
    [
        (0, "none", 1, 1024, 2, 628),
        (0, "none", 64, 4096, 2, 6468),
        (1, "none", 8, 8192, 2, 757),
        (2, "none", 1, 4096, 2, 60),
        (2, "fp8", 64, 8192, 1, 2116),
        (2, "int4", 1, 4096, 1, 218),
    ],
)
def test_the_floor_is_the_published_one(
    model: int, quantization: str, batch: int, context: int, cache_bytes: int, tokens_per_s: int
) -> None:
    """Of an H100's datasheet."""
    floor_s = Step(PUBLISHED[model], quantization, batch, context, cache_bytes).floor_s(*H100)
    assert round(batch / floor_s) == tokens_per_s


def test_a_gpu_is_known_by_its_name() -> None:
    assert datasheet("NVIDIA H100 80GB HBM3") == H100
    assert datasheet("NVIDIA H200") == (4.8e12, 990e12)
    assert datasheet("Tesla T4") is None
    about = {"gpu": {"name": "NVIDIA H100 80GB HBM3"}, "date": "2026-11-21T10:00:00+00:00"}
    assert file_name(about) == "nvidia-h100-80gb-hbm3-2026-11-21.json"
    assert file_name(about | {"gpu": {}}) == "no-gpu-2026-11-21.json"


# A process that does the sections it is given: "dies" dies at its second case, "hangs" at its first.
CHILD = """
import os, sys, time
from pathlib import Path
from bench.gpu.report import DONE, RUNNING, Report, Row

report = Report.at([Path(sys.argv[1])])
for name in sys.argv[3:]:
    report.sections[name] = RUNNING
    for case in ("first", "second", "third"):
        if f"{name}: {case}" in report.tried:
            continue
        report.tried.append(f"{name}: {case}")
        report.write()
        if (name, case) == ("dies", "second"):
            os._exit(3)
        if (name, case) == ("hangs", "first"):
            time.sleep(600)
        report.rows.append(Row(case, 1.0, section=name))
        report.write()
    report.sections[name] = DONE
    report.write()
"""


def test_what_breaks_or_hangs_keeps_nothing_else_from_being_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    report = Report([tmp_path / "report.json"])
    command = [sys.executable, "-c", CHILD, str(report.paths[0])]
    run_all(report, {"good": 60.0, "dies": 60.0, "hangs": 5.0, "last": 60.0}, 120.0, command)
    assert set(report.sections.values()) == {DONE}
    found = {name: [row.case for row in report.rows if row.section == name] for name in report.sections}
    everything = ["first", "second", "third"]
    assert found == {"good": everything, "dies": ["first", "third"], "hangs": everything[1:], "last": everything}
    assert report.notes == ["dies: second: the process ended with 3", "hangs: first: it hung"]
    assert Report.at(report.paths).sections == report.sections


def test_without_time_or_without_a_beginning_it_ends(tmp_path: Path) -> None:
    report = Report([tmp_path / "report.json"])
    run_all(report, {"good": 60.0}, 0.0, [sys.executable, "-c", "raise SystemExit(1)"])
    assert report.sections == {"good": "left out: no time"}
    report = Report([tmp_path / "report.json"])
    run_all(report, {"good": 60.0}, 60.0, [sys.executable, "-c", "raise SystemExit(1)"])
    assert report.notes == ["nothing was tried: the process ended with 1"]
    assert RUNNING not in report.sections.values()
