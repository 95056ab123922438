"""A cheap streaming client of any OpenAI-compatible server: takes the time of each chunk, and little else."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from gemline.bench.http import Origin, Response, send
from gemline.bench.measure import Record
from gemline.bench.workloads import Ask
from gemline.errors import ConfigurationError, GemlineError, ModelNotFound, Unauthenticated, Unavailable

Endpoint = Literal["completions", "chat"]
ENDPOINTS: tuple[Endpoint, ...] = ("completions", "chat")

_PREFLIGHT_S = 30.0
_MAX_REASON = 200


def check_endpoint(name: str) -> Endpoint:
    """Raises ConfigurationError naming --endpoint."""
    for endpoint in ENDPOINTS:
        if endpoint == name:
            return endpoint
    raise ConfigurationError(f"--endpoint is {name!r}: it must be one of {', '.join(ENDPOINTS)}")


class Answered(NamedTuple):
    """A request's record and, for the next turn, the text it gave."""

    record: Record
    text: str


class Said(NamedTuple):
    """A turn that has had its answer."""

    ask: Ask
    answer: str


@dataclass(frozen=True, slots=True)
class Server:
    """One server, and what every request to it says."""

    origin: Origin
    api_key: str | None = None
    model: str = ""
    endpoint: Endpoint = "completions"
    num_output_tokens: int = 64
    ignore_eos: bool = False
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.num_output_tokens < 1:
            raise ConfigurationError(f"--output-tokens is {self.num_output_tokens}: it must be at least 1")
        if not self.timeout_s > 0:
            raise ConfigurationError(f"--timeout-s is {self.timeout_s}: it must be over 0")
        if self.api_key and not (self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigurationError("--api-key holds letters that no HTTP header can")

    async def find_model(self) -> str:
        """`model` if the server has it, else the first it lists.

        Raises Unavailable, Unauthenticated or ModelNotFound. A server without a list is believed to have `model`.
        """
        try:
            async with asyncio.timeout(_PREFLIGHT_S), send(self.origin, "GET", "/v1/models", self._headers) as response:
                body = await response.read()
        except TimeoutError:
            raise Unavailable(f"{self.origin.address}/v1/models: no answer within {_PREFLIGHT_S:g} s") from None
        if response.status == 404 and self.model:
            return self.model
        if response.status != 200:
            raise _refusal(f"{self.origin.address}/v1/models", response.status, body)
        return self._choose(_model_ids(self.origin, body))

    def _choose(self, served: list[str]) -> str:
        if self.model and self.model not in served:
            raise ModelNotFound(f"{self.origin.address} serves no model {self.model!r}, but {', '.join(served)}")
        if not served:
            raise ModelNotFound(f"{self.origin.address} serves no model")
        return self.model or served[0]

    async def ask(self, said: Sequence[Said], ask: Ask) -> Answered:
        """Send one request and take its times; whatever goes wrong stands in the record."""
        body = json.dumps(self._body(said, ask), separators=(",", ":")).encode()
        path = "/v1/completions" if self.endpoint == "completions" else "/v1/chat/completions"
        watch = _Watch(sent_s=time.perf_counter())
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                send(self.origin, "POST", path, self._headers, body) as response,
            ):
                await watch.read(response)
        except TimeoutError:
            return watch.failed(f"no end within {self.timeout_s:g} s")
        except GemlineError as error:
            return watch.failed(error.message)
        return watch.done(ask)

    @property
    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Accept": "*/*"}
        return {**headers, "Authorization": f"Bearer {self.api_key}"} if self.api_key else headers

    def _body(self, said: Sequence[Said], ask: Ask) -> dict[str, Any]:
        common: dict[str, Any] = {
            "model": self.model,
            "max_tokens": self.num_output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.ignore_eos:
            common["ignore_eos"] = True
        if self.endpoint == "chat":
            return {**common, "messages": _messages(said, ask)}
        return {**common, "prompt": _prompt(said, ask)}


def _messages(said: Sequence[Said], ask: Ask) -> list[dict[str, str]]:
    messages = []
    for turn in said:
        messages.append({"role": "user", "content": turn.ask.text})
        messages.append({"role": "assistant", "content": turn.answer})
    return [*messages, {"role": "user", "content": ask.text}]


def _prompt(said: Sequence[Said], ask: Ask) -> str | list[int]:
    """Ids have no answers between them, for servers tell text alone."""
    if ask.token_ids:
        return [token_id for one in (*(turn.ask for turn in said), ask) for token_id in one.token_ids]
    return "".join(f"{turn.ask.text}{turn.answer}\n" for turn in said) + ask.text


class _Watch:
    """Takes the time of each chunk of one answer."""

    def __init__(self, sent_s: float) -> None:
        self._sent_s = sent_s
        self._times_s: list[float] = []
        self._texts: list[str] = []
        self._num_tokens: int | None = None
        self._num_prompt_tokens: int | None = None

    async def read(self, response: Response) -> None:
        """Raises a GemlineError when the server refuses or breaks off."""
        if response.status != 200:
            raise _refusal("", response.status, await response.read())
        ended = False
        async for data in _events(response):
            if data == b"[DONE]":
                ended = True
                continue
            try:
                ended = self._take(json.loads(data)) or ended
            except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
                raise Unavailable("an event of the stream is not as OpenAI's are") from None
        if not ended:
            raise Unavailable("the stream ended without a finish_reason or [DONE]")

    def _take(self, chunk: dict[str, Any]) -> bool:
        """Count a chunk; whether it is a choice's last."""
        if chunk.get("error"):
            raise Unavailable(_reason(chunk))
        if usage := chunk.get("usage"):
            self._num_tokens = int(usage["completion_tokens"])
            self._num_prompt_tokens = int(usage["prompt_tokens"])
        if not (choices := chunk.get("choices")):
            return False
        self._times_s.append(time.perf_counter())
        choice = choices[0]
        self._texts.append(choice.get("text") or (choice.get("delta") or {}).get("content") or "")
        return choice.get("finish_reason") is not None

    def done(self, ask: Ask) -> Answered:
        """The record of an answer that came to its end."""
        if not self._times_s:
            return self.failed("the answer held no chunk")
        num_chunks = sum(bool(text) for text in self._texts)
        record = Record(
            sent_s=self._sent_s,
            chunk_times_s=tuple(self._times_s),
            num_prompt_tokens=ask.num_tokens if self._num_prompt_tokens is None else self._num_prompt_tokens,
            num_output_tokens=num_chunks if self._num_tokens is None else self._num_tokens,
            counted_by_server=self._num_tokens is not None,
        )
        return Answered(record, "".join(self._texts))

    def failed(self, reason: str) -> Answered:
        """The record of one that did not."""
        return Answered(Record(self._sent_s, tuple(self._times_s), error=reason), "".join(self._texts))


async def _events(response: Response) -> AsyncIterator[bytes]:
    """The data of each server-sent event; comments and other fields are passed over."""
    rest = b""
    async for block in response.blocks():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


def _model_ids(origin: Origin, body: bytes) -> list[str]:
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, TypeError, KeyError):
        raise Unavailable(f"{origin.address}/v1/models does not answer as OpenAI's does") from None


def _refusal(where: str, status: int, body: bytes) -> GemlineError:
    try:
        reason = _reason(json.loads(body))
    except ValueError:
        reason = " ".join(body.decode(errors="replace").split())[:_MAX_REASON]
    message = f"{where} HTTP {status}: {reason or 'no reason given'}".strip()
    return Unauthenticated(f"{message} (see --api-key)") if status in (401, 403) else Unavailable(message)


def _reason(answer: object) -> str:
    """What servers put in the place of OpenAI's error.message."""
    for key in ("error", "message", "detail"):
        if isinstance(answer, dict) and key in answer:
            answer = answer[key]
    return " ".join(str(answer).split())[:_MAX_REASON]
