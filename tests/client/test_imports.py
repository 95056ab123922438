"""The SDK by itself: what `pip install gemline` gives is enough, shown in a fresh interpreter."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from support.fake_gateway import Served

import gemline

PROGRAM = """
import sys
from gemline.client import Client, AsyncClient, Message
import asyncio

address = sys.argv[1]
with Client(address) as client:
    print(client.generate("x").text)
    with client.chat_stream([Message("user", "x")]) as stream:
        print("".join(piece.text for piece in stream))

async def main():
    async with AsyncClient(address) as client:
        print((await client.generate("x")).text)

asyncio.run(main())
allowed = {"gemline", "grpc", "google", "typing_extensions", *sys.stdlib_module_names, "__main__"}
loaded = {name.partition(".")[0] for name in sys.modules if "cython" not in name}
print(sorted(loaded - allowed))
"""


def with_requirements(name: str) -> Iterator[Distribution]:
    """The installed package and all that it needs, extras left out."""
    found = distribution(name)
    yield found
    for requirement in found.requires or ():
        if "extra ==" not in requirement and (match := re.match(r"[\w.-]+", requirement)):
            yield from with_requirements(match[0])


@pytest.fixture
def bare_site(tmp_path: Path) -> Path:
    """A site folder with gemline, grpcio, protobuf and their own requirements, and nothing else."""
    for package in ("grpcio", "protobuf"):
        for found in with_requirements(package):
            for file in found.files or ():
                if ".." not in file.parts and "__pycache__" not in file.parts:
                    target = tmp_path / file
                    target.parent.mkdir(parents=True, exist_ok=True)
                    if not target.exists():
                        target.symlink_to(Path(str(found.locate_file(file))))
    (tmp_path / "gemline").symlink_to(Path(gemline.__file__).parent)
    return tmp_path


def test_the_sdk_needs_grpcio_and_protobuf_only(bare_site: Path, served: Served) -> None:
    program = f"import sys; sys.path.append({str(bare_site)!r})\n{PROGRAM}"
    command = [sys.executable, "-I", "-S", "-c", program, served.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["Hello", "Hello", "Hello", "[]"]


def test_the_client_does_not_wait_for_torch_or_typer() -> None:
    program = "import sys, gemline.client; print({'torch', 'typer', 'pydantic', 'ray', 'redis'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
