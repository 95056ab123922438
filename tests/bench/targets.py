"""What gemline is to reach beside its peers, as data, and a comparison written out as Markdown. Measures nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench.results import Comparison, Result

_VLLM = ("vLLM bf16", "vLLM fp32")
_BF16 = (*_VLLM, "llama.cpp BF16")
_Q8 = ("llama.cpp Q8_0",)
_Q4 = ("llama.cpp Q4_0",)
_RATE, _PREFILL, _DECODE = "output_tokens_per_s", "prefill_tokens_per_s", "decode_tokens_per_s"


@dataclass(frozen=True)
class Target:
    """Our figure over the better of the peers', which is to be at least, or where less is better at most, `ratio`."""

    case: str
    figure: str
    ours: str
    peers: tuple[str, ...]
    ratio: float
    less_is_better: bool = False


def _rates(case: str, figure: str, bf16: float, int8: float, int4: float, over_vllm: float | None) -> list[Target]:
    targets = [
        Target(case, figure, "gemline bf16", _BF16, bf16),
        Target(case, figure, "gemline int8", _Q8, int8),
        Target(case, figure, "gemline int4", _Q4, int4),
    ]
    return targets if over_vllm is None else [*targets, Target(case, figure, "gemline int8", _VLLM, over_vllm)]


TARGETS = (
    *_rates("prefill 512", _PREFILL, 1.1, 2.5, 1.0, 1.6),
    *_rates("prefill 1536", _PREFILL, 1.1, 2.5, 1.0, 1.6),
    *_rates("1 stream", _DECODE, 1.5, 1.5, 1.3, None),
    *_rates("8 concurrent", _RATE, 1.25, 2.5, 1.5, 1.7),
    *_rates("32 concurrent", _RATE, 1.15, 2.5, 1.5, 1.7),
    *(
        Target("32 concurrent", "itl_p99_ms", f"gemline {precision}", _VLLM, 0.2, less_is_better=True)
        for precision in ("bf16", "int8", "int4")
    ),
    *_rates("sessions", _RATE, 1.5, 2.0, 2.0, None),
    Target("sessions", "ttft_p99_ms", "gemline bf16", _BF16, 0.6, less_is_better=True),
)
_ROWS = (
    *(("prefill 512", _PREFILL), ("prefill 1536", _PREFILL)),
    *(("1 stream", _DECODE), ("1 stream", "itl_p50_ms")),
    *(
        (case, figure)
        for case in ("8 concurrent", "32 concurrent", "sessions")
        for figure in (_RATE, "ttft_p50_ms", "ttft_p99_ms", "itl_p50_ms", "itl_p99_ms")
    ),
    *(("burst", figure) for figure in ("quiet_itl_p99_ms", "burst_itl_p99_ms", "burst_over_quiet")),
)


def markdown(comparison: Comparison) -> str:
    """Figures, ratios against the targets, shares of the machine's peaks, and what they were measured on."""
    parts = [_about(comparison.about, comparison.peaks), _figures(comparison), _ratios(comparison)]
    return "\n\n".join([*parts, *filter(None, [_shares(comparison), _errors(comparison)])])


def _about(about: dict[str, Any], peaks: dict[str, float]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    most = ", ".join(f"{name} {value:g}" for name, value in peaks.items())
    return (
        f"{about['date']}, {about['cpu']}, {about['cores']} cores ({', '.join(about['flags'])}), "
        f"{about['memory_gib']} GiB; {versions}. {about['rounds']} rounds. Measured peaks: {most}."
    )


def _figures(comparison: Comparison) -> str:
    names = list(comparison.results)
    rows = [
        [f"{case}: {figure}", *(_number(comparison.median(name, case, figure)) for name in names)]
        for case, figure in _ROWS
        if any(comparison.median(name, case, figure) is not None for name in names)
    ]
    results = comparison.results.values()
    rows.append(["start to ready, s", *(_number(result.start_s) for result in results)])
    rows.append(["memory, MB", *(_number(result.memory_mb or None) for result in results)])
    rows.append(["its largest process, MB", *(_number(result.largest_process_mb or None) for result in results)])
    rows.append(["CPU that others took, most, %", *(_number(_most_taken(result)) for result in results)])
    return _table(["", *names], rows)


def _most_taken(result: Result) -> float | None:
    return max((100 * share for shares in result.others_share.values() for share in shares), default=None)


def _ratios(comparison: Comparison) -> str:
    rows = [row for target in TARGETS if (row := _ratio(comparison, target))]
    rows += _limits(comparison.results)
    return _table(["target", "ours", "theirs", "ratio", "wanted", ""], rows)


def _ratio(comparison: Comparison, target: Target) -> list[str] | None:
    ours = comparison.median(target.ours, target.case, target.figure)
    figures = {name: comparison.median(name, target.case, target.figure) for name in target.peers}
    theirs = {name: figure for name, figure in figures.items() if figure is not None}
    if ours is None or not theirs:
        return None
    best = (min if target.less_is_better else max)(theirs, key=theirs.__getitem__)
    ratio = ours / theirs[best]
    met = ratio <= target.ratio if target.less_is_better else ratio >= target.ratio
    wanted = f"{'<=' if target.less_is_better else '>='} {target.ratio:g}"
    label = f"{target.ours}, {target.case}: {target.figure}"
    return [label, _number(ours), f"{_number(theirs[best])} ({best})", f"{ratio:.2f}", wanted, _verdict(met)]


def _limits(results: dict[str, Result]) -> list[list[str]]:
    """Targets that are no ratio of one case's figures."""
    rows = []
    for name, limit_s in (("gemline bf16", 8.0), ("gemline on Ray", 30.0)):
        if name in results and (start_s := results[name].start_s) is not None:
            row = [f"{name}: start to ready, s", _number(start_s), "", ""]
            rows.append([*row, f"<= {limit_s:g}", _verdict(start_s <= limit_s)])
    for name, result in results.items():
        if (ratio := result.median("burst", "burst_over_quiet")) is not None:
            rows.append(
                [f"{name}: p99 ITL in a burst over quiet", "", "", f"{ratio:.2f}", "<= 2", _verdict(ratio <= 2)]
            )
    for ours, peers in (("gemline bf16", _BF16), ("gemline int8", _Q8), ("gemline int4", _Q4)):
        theirs = {name: results[name].memory_mb for name in peers if name in results and results[name].memory_mb}
        if theirs and ours in results and (mine := results[ours].largest_process_mb):
            best = min(theirs, key=theirs.__getitem__)
            row = [f"{ours}: memory of a worker, MB", _number(mine), f"{_number(theirs[best])} ({best})"]
            rows.append([*row, f"{mine / theirs[best]:.2f}", "<= 1", _verdict(mine <= theirs[best])])
    return rows


def _shares(comparison: Comparison) -> str:
    """Prefill against the peak of multiply-adds, one stream against that of reads: each weight is used once a token."""
    size, peaks = comparison.about["model"], comparison.peaks
    rows = []
    for precision, bytes_per_weight, head_bytes, peak in (
        ("bf16", 2.0, 2.0, peaks.get("bf16_gflops")),
        ("int8", 1.0, 1.0, peaks.get("int8_gops")),
        ("int4", 0.5, 1.0, peaks.get("int8_gops")),
    ):
        name = f"gemline {precision}"
        read = 1e-9 * (size["weights"] * bytes_per_weight + size["head_weights"] * head_bytes)
        for case in ("prefill 512", "prefill 1536"):
            if (rate := comparison.median(name, case, _PREFILL)) and peak:
                rows.append([f"{name}, {case}", f"{100 * rate * 2e-9 * size['weights'] / peak:.0f}% of {peak:g} GOP/s"])
        if (rate := comparison.median(name, "1 stream", _DECODE)) and (most := peaks.get("read_gbytes")):
            rows.append([f"{name}, 1 stream", f"{100 * rate * read / most:.0f}% of {most:g} GB/s"])
    return _table(["share of the machine's peak", ""], rows) if rows else ""


def _errors(comparison: Comparison) -> str:
    errors = [f"- {name}: {error}" for name, result in comparison.results.items() for error in result.errors]
    return "\n".join(["Failed:", *errors]) if errors else ""


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _verdict(met: bool) -> str:
    return "met" if met else "MISSED"
