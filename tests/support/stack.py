"""The whole platform as a user starts it: `gemline up` in a process of its own, found through its ready file."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from support.noise_model.checkpoint import cached_demo

START_LIMIT_S = 120.0
STOP_LIMIT_S = 60.0


@dataclass(frozen=True)
class Running:
    """A stack that serves."""

    process: subprocess.Popen[bytes]
    ready: dict[str, Any]
    output: Path

    @property
    def base_url(self) -> str:
        return f"{self.ready['http']}/v1"

    @property
    def model(self) -> str:
        return str(self.ready["model"])

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.base_url, api_key=self.ready["api_key"], max_retries=0, timeout=60)

    def pids(self, role: str) -> list[int]:
        return [process["pid"] for process in self.ready["processes"] if process["role"] == role]

    def stop(self, how: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(how)
        return self.process.wait(STOP_LIMIT_S)


def start_stack(
    directory: Path,
    *options: str,
    environment: dict[str, str] | None = None,
    shipped: bool = False,
    model: Path | None = None,
    limit_s: float = START_LIMIT_S,
) -> Running:
    """Run `gemline up` with these options until it is ready.

    On a model made of noise, which never ends an answer by itself, unless `shipped`: then on the one that has meaning;
    or on `model`.
    """
    if not shipped:
        options = ("--model", str(model or cached_demo()), "--served-model-name", "gemline-demo", *options)
    ready_file = directory / "ready.json"
    output = directory / "up.log"
    command = [sys.executable, "-m", "gemline.cli.main", "up", "--http-port", "0", "--grpc-port", "0"]
    with output.open("wb") as log:
        process = subprocess.Popen(
            [*command, "--ready-file", str(ready_file), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **(environment or {})},
        )
    limit = time.monotonic() + limit_s
    while not ready_file.exists():
        if process.poll() is not None or time.monotonic() > limit:
            process.kill()
            raise AssertionError(f"gemline up {options} is not ready:\n{output.read_text()}")
        time.sleep(0.05)
    return Running(process, json.loads(ready_file.read_text()), output)
