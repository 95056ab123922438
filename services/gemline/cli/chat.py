"""`gemline chat`: a conversation in the terminal, streamed."""

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemline.cli import options
from gemline.cli.stdin import read_line
from gemline.errors import GemlineError

if TYPE_CHECKING:
    from gemline.cli.talk import Talk
    from gemline.client import Client

_HELP = "/new starts over, /save FILE keeps the conversation as JSON, /exit leaves; Ctrl-C stops an answer"


def chat(
    system: Annotated[str | None, typer.Option(help="system message, where the gateway takes one")] = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="ID|new", help="have the gateway keep the conversation: go on with one, or begin one"),
    ] = None,
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
    json_schema: Annotated[
        Path | None, typer.Option(metavar="FILE", help="answer with JSON that this JSON schema accepts")
    ] = None,
) -> None:
    """Talk with a model, a line at a time; reads lines from a pipe too."""
    from gemline.cli.talk import OwnTalk, SessionTalk

    signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells start a program with Ctrl-C ignored
    sampling = options.sampling(max_tokens, temperature, top_k, top_p, seed, stop)
    if json_schema is not None:
        sampling["response_format"] = options.schema_format(json_schema)
    with options.open_client(address, api_key, model, tls, root_certificates, timeout_s) as client:
        talk = SessionTalk(client, sampling, system, session) if session else OwnTalk(client, sampling, system)
        _Chat(client, talk, interactive=sys.stdin.isatty()).run()


class _Chat:
    """One sitting. A person sees errors and goes on; a pipe stops at the first."""

    def __init__(self, client: "Client", talk: "Talk", *, interactive: bool) -> None:
        self._client = client
        self._talk = talk
        self._interactive = interactive

    def run(self) -> None:
        """Take lines until there are no more, or one says /exit."""
        from gemline.cli.terminal import remark

        if self._interactive:
            names = ", ".join(model.id for model in self._client.models())
            remark(f"serving {names}. {_HELP}")
        while (line := self._next_line()) not in (None, "/exit", "/quit"):
            try:
                self._take(line)
            except GemlineError as error:
                if not self._interactive:
                    raise
                remark(f"error: {error.message}")

    def _next_line(self) -> str | None:
        while True:
            try:
                line = read_line("> ")
            except KeyboardInterrupt:
                if not self._interactive:
                    raise
                print("\n(/exit or Ctrl-D leaves)", file=sys.stderr)
                continue
            if line is None or line.strip():
                return line if line is None else line.strip()

    def _take(self, line: str) -> None:
        from gemline.cli.terminal import remark

        match line.split(maxsplit=1):
            case ["/new"]:
                self._talk.restart()
            case ["/save", path]:
                self._talk.save(Path(path).expanduser())
                remark(f"saved to {path}")
            case [command, *_] if command.startswith("/"):
                remark(_HELP)
            case _:
                self._answer(line)

    def _answer(self, question: str) -> None:
        from gemline.cli.terminal import Stopwatch, remark, write_answer

        stopwatch = Stopwatch()
        with self._talk.ask(question) as stream:
            try:
                for piece in stream:
                    stopwatch.saw(piece)
                    write_answer(piece.text)
            except KeyboardInterrupt:
                stream.cancel()
            finally:
                write_answer("\n" if stream.text else "")
        remark(stopwatch.summary(stream.usage))
        self._talk.keep(question, stream)
