"""`gemline bench`: puts load on any OpenAI-compatible server and tells its throughput and latencies."""

import asyncio
import datetime
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gemline import __version__
from gemline.cli import options
from gemline.cli.ready import default_ready_file, read_ready
from gemline.errors import ConfigurationError, Unavailable

if TYPE_CHECKING:
    from gemline.bench.load import Pace, Run
    from gemline.bench.measure import Objective
    from gemline.bench.openai_stream import Server
    from gemline.bench.report import Circumstances
    from gemline.bench.workloads import Conversation, WorkloadOptions

_LOAD = "Load"
_OUTPUT = "Output"

Url = Annotated[str | None, typer.Option(help="http://HOST:PORT; default: the stack of the ready file")]
Model = Annotated[str | None, typer.Option(help="default: the first of the server's /v1/models")]
Workload = Annotated[str, typer.Option(help="random, session or shared-prefix", rich_help_panel=_LOAD)]
Endpoint = Annotated[str, typer.Option(help="completions or chat", rich_help_panel=_LOAD)]
NumRequests = Annotated[int | None, typer.Option(help="not for session; default 32", rich_help_panel=_LOAD)]
Concurrency = Annotated[
    int | None, typer.Option(help="most under way at once; default 8, with --rate no limit", rich_help_panel=_LOAD)
]
Rate = Annotated[
    float | None, typer.Option(help="Poisson arrivals a second of requests, or of sessions", rich_help_panel=_LOAD)
]
PromptTokens = Annotated[str, typer.Option(metavar="MIN[-MAX]", help="per request or turn", rich_help_panel=_LOAD)]
OutputTokens = Annotated[int, typer.Option(help="max_tokens of each request", rich_help_panel=_LOAD)]
Sessions = Annotated[int | None, typer.Option(help="default 8", rich_help_panel=_LOAD)]
Turns = Annotated[int | None, typer.Option(help="of each session; default 5", rich_help_panel=_LOAD)]
PrefixTokens = Annotated[
    int | None, typer.Option(help="what all prompts begin with; default 256", rich_help_panel=_LOAD)
]
Text = Annotated[
    bool | None,
    typer.Option(
        "--text/--ids",
        help="words (default of sessions and chat) or exact token ids; sessions of ids leave answers out",
        rich_help_panel=_LOAD,
    ),
]
VocabSize = Annotated[int, typer.Option(help="ids are drawn from below it", rich_help_panel=_LOAD)]
Seed = Annotated[int, typer.Option(help="makes the load repeatable", rich_help_panel=_LOAD)]
IgnoreEos = Annotated[bool, typer.Option("--ignore-eos", help="every answer in full length", rich_help_panel=_LOAD)]
TimeoutS = Annotated[float, typer.Option(help="most seconds for one answer", rich_help_panel=_LOAD)]
Goodput = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME:MS...",
        help="what a good request keeps: ttft, tpot, e2el, itl (its longest gap), as in ttft:2000 itl:200",
        rich_help_panel=_OUTPUT,
    ),
]
JsonPath = Annotated[Path | None, typer.Option("--json", help="write all figures there", rich_help_panel=_OUTPUT)]
PlotPath = Annotated[Path | None, typer.Option("--plot", help="a PNG; needs matplotlib", rich_help_panel=_OUTPUT)]


def bench(
    more_goodput: Annotated[list[str] | None, typer.Argument(metavar="[NAME:MS]...", hidden=True)] = None,
    url: Url = None,
    api_key: options.ApiKey = None,
    model: Model = None,
    workload: Workload = "random",
    endpoint: Endpoint = "completions",
    num_requests: NumRequests = None,
    concurrency: Concurrency = None,
    rate: Rate = None,
    prompt_tokens: PromptTokens = "128-256",
    output_tokens: OutputTokens = 64,
    sessions: Sessions = None,
    turns: Turns = None,
    prefix_tokens: PrefixTokens = None,
    text: Text = None,
    vocab_size: VocabSize = 1000,
    seed: Seed = 0,
    ignore_eos: IgnoreEos = False,
    timeout_s: TimeoutS = 600.0,
    goodput: Goodput = None,
    json_path: JsonPath = None,
    plot_path: PlotPath = None,
) -> None:
    """Measure an OpenAI-compatible server: tokens/s, TTFT, ITL and TPOT as vLLM defines them, goodput."""
    from gemline.bench import report, workloads
    from gemline.bench.http import Origin
    from gemline.bench.load import Pace
    from gemline.bench.measure import Objective
    from gemline.bench.openai_stream import Server, check_endpoint

    if more_goodput and not goodput:
        raise ConfigurationError(f"unexpected argument {more_goodput[0]!r}: gemline bench takes options alone")
    limits = " ".join([*(goodput or []), *(more_goodput or [])]).split()
    objective = Objective.parse(limits) if goodput else None
    report.check_outputs(json_path, plot_path)
    asked = check_endpoint(endpoint)
    plan = workloads.plan(
        workload,
        prompt_tokens,
        num_requests=num_requests,
        num_sessions=sessions,
        num_turns=turns,
        num_prefix_tokens=prefix_tokens,
        as_text=text,
        chat=asked == "chat",
        vocab_size=vocab_size,
        seed=seed,
    )
    pace = Pace(8 if concurrency is None and rate is None else concurrency, rate, seed)
    url, key = _find_server(url, api_key)
    server = Server(Origin.parse(url), key, model or "", asked, output_tokens, ignore_eos, timeout_s)
    server, ran = asyncio.run(_run(server, workloads.make(plan), pace))
    _tell(ran, objective, _circumstances(url, server, plan, pace), json_path, plot_path)


async def _run(server: "Server", conversations: "list[Conversation]", pace: "Pace") -> "tuple[Server, Run]":
    from gemline.bench import load

    server = replace(server, model=await server.find_model())
    return server, await load.run(server, conversations, pace)


def _tell(
    ran: "Run", objective: "Objective | None", about: "Circumstances", json_path: Path | None, plot_path: Path | None
) -> None:
    from gemline.bench import measure, report

    summary = measure.summarize(ran.records, ran.duration_s, objective)
    print(f"{about.model} at {about.url}, {about.date}, gemline {about.version}\n")
    print(report.table(summary))
    if json_path:
        report.write_json(json_path, report.as_json(summary, ran.records, about))
    if plot_path:
        report.plot(ran.records, plot_path, f"{about.model}, {about.workload['kind']}, {about.date}")
    if not summary.num_ok:
        raise Unavailable(f"none of the {summary.num_requests} requests was answered")


def _circumstances(url: str, server: "Server", plan: "WorkloadOptions", pace: "Pace") -> "Circumstances":
    from gemline.bench.report import Circumstances

    sent = {"endpoint": server.endpoint, "output_tokens": server.num_output_tokens, "ignore_eos": server.ignore_eos}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    load = {**asdict(plan), **asdict(pace), **sent}
    return Circumstances(__version__, now, _command(sys.argv[1:]), url, server.model, load)


def _command(arguments: list[str]) -> tuple[str, ...]:
    """What was typed, without the key."""
    told = ["gemline"]
    for before, argument in zip(["", *arguments], arguments, strict=False):
        name, equals, _ = argument.partition("=")
        secret = before == "--api-key"
        told.append("..." if secret else f"{name}=..." if name == "--api-key" and equals else argument)
    return tuple(told)


def _find_server(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """URL and key to use: those given, else the ready file's; its key is for its own stack alone."""
    path = default_ready_file()
    if url is None and not path.exists():
        raise ConfigurationError(
            f"no stack is ready on this machine ({path} is missing): run `gemline up`, or give --url http://HOST:PORT"
        )
    if url is None:
        ready = read_ready(path)
        return ready.http, api_key or ready.api_key
    return url, api_key or _ready_key(url, path)


def _ready_key(url: str, path: Path) -> str | None:
    try:
        ready = read_ready(path)
    except ConfigurationError:
        return None
    return ready.api_key if ready.http.rstrip("/") == url.rstrip("/").removesuffix("/v1") else None
