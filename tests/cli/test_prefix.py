"""`gemline prefix` with a real Redis."""

from pathlib import Path

from support.commands import gemline


def test_add_list_and_remove(tmp_path: Path, redis_url: str) -> None:
    file = tmp_path / "rules.txt"
    file.write_text("Be kind. " * 5)
    at = ("--redis-url", redis_url)
    done = gemline("prefix", "add", "shop", "--model", "tiny", "--file", str(file), *at, home=tmp_path)
    assert (done.returncode, done.stdout) == (0, "shop\n")
    done = gemline("prefix", "add", "tale", "--model", "tiny", "--raw", *at, home=tmp_path, stdin=b"Once upon a time")
    assert done.returncode == 0, done.stderr
    listed = gemline("prefix", "list", *at, home=tmp_path).stdout.splitlines()
    assert listed == ["shop  tiny  chat  45 characters", "tale  tiny  raw  16 characters"]
    assert gemline("prefix", "remove", "shop", *at, home=tmp_path).returncode == 0
    done = gemline("prefix", "remove", "shop", *at, home=tmp_path)
    assert done.returncode == 1
    assert "no public prefix 'shop'" in done.stderr


def test_a_file_that_is_not_there_is_named(tmp_path: Path, redis_url: str) -> None:
    at = ("--redis-url", redis_url, "--file", str(tmp_path / "none.txt"))
    done = gemline("prefix", "add", "shop", "--model", "tiny", *at, home=tmp_path)
    assert done.returncode == 1
    assert "none.txt" in done.stderr
