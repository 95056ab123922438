"""What `pip install gemline` brings: the C++ that is compiled on the user's machine is in the wheel."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Every file of the wheel."""
    target = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(target)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = target.glob("*.whl")
    return set(zipfile.ZipFile(wheel).namelist())


def test_every_source_of_the_native_library_is_in_the_wheel(names: set[str]) -> None:
    folder = ROOT / "kernels" / "gemline_kernels" / "cpu"
    sources = {f"gemline_kernels/cpu/{path.name}" for path in folder.iterdir() if path.suffix in (".cpp", ".h")}
    assert sources
    assert sources <= names


def test_the_wheel_has_no_compiled_file_and_no_test(names: set[str]) -> None:
    assert {Path(name).suffix for name in names} & {".so", ".o", ".pyc"} == set()
    assert all(name.startswith(("gemline/", "gemline_kernels/", "gemline-")) for name in names)
