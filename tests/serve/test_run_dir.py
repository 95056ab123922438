"""Logs of the last few runs are kept, those of living ones always."""

import os
from pathlib import Path

import pytest

from gemline.errors import ConfigurationError
from gemline.serve.ready import Ready
from gemline.serve.run_dir import make_run_dir


def test_only_the_newest_runs_and_the_living_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path))
    living = tmp_path / "runs" / f"20200101-000000-{os.getpid()}"
    living.mkdir(parents=True)
    for number in range(20):
        (tmp_path / "runs" / f"20210101-0000{number:02}-99999999").mkdir()
    made = make_run_dir()
    kept = sorted((tmp_path / "runs").iterdir())
    assert kept[0] == living
    assert kept[-1] == made
    assert len(kept) == 9
    assert made.stat().st_mode & 0o077 == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").write_text("a file, not a folder")
    monkeypatch.setenv("GEMLINE_CACHE", str(tmp_path))
    with pytest.raises(ConfigurationError, match=str(tmp_path)):
        make_run_dir()


def test_a_stack_leaves_the_ready_file_of_a_newer_one_alone(tmp_path: Path) -> None:
    older, newer = (Ready("http://h", "g", key, "m", "redis://r", "logs", ()) for key in ("gk_1_a", "gk_2_b"))
    path = tmp_path / "ready.json"
    older.write(path)
    newer.write(path)
    older.remove(path)
    assert path.exists()
    newer.remove(path)
    assert not path.exists()
    newer.remove(path)
