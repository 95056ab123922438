"""One streamed completion as a client sees it, event by event, with what the test does meanwhile."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
from support.stack import Running

TIMEOUT_S = 170.0


@dataclass
class Told:
    """All that came."""

    text: str = ""
    token_logprobs: list[tuple[str, float]] = field(default_factory=list)
    finish_reason: str | None = None
    usage: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    times_s: list[float] = field(default_factory=list)  # of the events

    @property
    def longest_gap_s(self) -> float:
        return max(after - before for before, after in zip(self.times_s, self.times_s[1:], strict=False))

    @property
    def answer(self) -> tuple[str, str | None, int]:
        """What must not depend on who computed it."""
        return self.text, self.finish_reason, self.usage["completion_tokens"] if self.usage else -1


def complete(running: Running, on_event: Callable[[int], None] = lambda number: None, **options: Any) -> Told:
    """Read one to its end; `on_event` is called after each event with its number, from 1 on."""
    body = {"model": running.model, "stream": True, "stream_options": {"include_usage": True}} | options
    headers = {"authorization": f"Bearer {running.ready['api_key']}"}
    told = Told()
    url = f"{running.base_url}/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=TIMEOUT_S) as answer:
        if answer.status_code != 200:
            told.error = json.loads(answer.read())["error"] | {"status": answer.status_code}
            return told
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                _add(told, json.loads(line.removeprefix("data: ")))
                on_event(len(told.times_s))
    return told


def _add(told: Told, event: dict[str, Any]) -> None:
    told.times_s.append(time.monotonic())
    told.error = event.get("error")
    told.usage = event.get("usage") or told.usage
    for choice in event.get("choices", ()):
        told.text += choice["text"]
        told.finish_reason = choice["finish_reason"] or told.finish_reason
        if choice.get("logprobs"):
            told.token_logprobs += zip(choice["logprobs"]["tokens"], choice["logprobs"]["token_logprobs"], strict=True)
