"""Every section of the GPU benchmark can be run: a case or two of each, tiny, and never mind the times."""

from itertools import islice
from pathlib import Path
from pkgutil import resolve_name

import pytest
from bench.gpu.bench import bench_on
from bench.gpu.child import run_section
from bench.gpu.plan import EVERYTHING, Planned
from bench.gpu.report import DONE, Report
from support.device import DEVICE


@pytest.mark.parametrize("name", EVERYTHING)
def test_a_section_measures(name: str, tmp_path: Path) -> None:
    bench = bench_on(DEVICE, Report([tmp_path / "report.json"]))
    rows = [case.measure() for case in islice(resolve_name(EVERYTHING[name].function)(bench), 2)]
    assert rows
    assert all(row.seconds > 0 for row in rows)


def test_a_section_without_time_is_left_out_and_what_was_tried_is_not_tried_again(tmp_path: Path) -> None:
    report = Report([tmp_path / "report.json"], tried=["peaks: product"])
    bench = bench_on(DEVICE, report)
    peaks = EVERYTHING["peaks"].function
    assert run_section(bench, "peaks", Planned(peaks, share_s=-1.0), end=2e9) == "out of time before copy"
    assert run_section(bench, "peaks", Planned(peaks, share_s=60.0), end=2e10) == DONE
    assert [row.case for row in report.rows] == ["copy"]
    assert report.tried == ["peaks: product", "peaks: copy"]
    assert run_section(bench, "nothing", Planned("bench.gpu.nothing:there", 60.0), end=2e10).startswith(
        "failed: Module"
    )
