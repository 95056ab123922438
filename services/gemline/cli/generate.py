"""`gemline generate`: continues one prompt and writes the text as it comes."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gemline.cli import options
from gemline.cli.stdin import read_stdin

if TYPE_CHECKING:
    from gemline.client import Completion, Stream


def generate(
    prompt: Annotated[str | None, typer.Argument(help="raw text; default: standard input")] = None,
    address: options.Address = None,
    api_key: options.ApiKey = None,
    model: options.ModelName = None,
    tls: options.UseTls = False,
    root_certificates: options.RootCertificates = None,
    timeout_s: options.TimeoutS = 600.0,
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    stop: options.Stop = None,
    as_json: Annotated[bool, typer.Option("--json", help="the whole answer as one JSON object")] = False,
    stats: Annotated[bool, typer.Option("--stats", help="tokens and speed, on standard error")] = False,
) -> None:
    """Continue a prompt (raw text, no chat turns) and write the text as it comes."""
    if prompt is None:
        prompt = read_stdin()
    sampling = options.sampling(max_tokens, temperature, top_k, top_p, seed, stop)
    with options.open_client(address, api_key, model, tls, root_certificates, timeout_s) as client:
        if as_json:
            _write_json(client.generate(prompt, **sampling))
        else:
            with client.generate_stream(prompt, **sampling) as stream:
                _write_text(stream, stats=stats)


def _write_json(completion: "Completion") -> None:
    fields = {name: value for name, value in asdict(completion).items() if name not in ("logprobs", "tool_calls")}
    print(json.dumps(fields, ensure_ascii=False))


def _write_text(stream: "Stream", *, stats: bool) -> None:
    from gemline.cli.terminal import Stopwatch, remark, write_answer

    stopwatch = Stopwatch()
    try:
        for piece in stream:
            stopwatch.saw(piece)
            write_answer(piece.text)
    finally:
        write_answer("\n" if stream.text else "")
    if stats:
        remark(stopwatch.summary(stream.usage))
