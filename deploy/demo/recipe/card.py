"""The model card: what the shipped model is, how it was made, and what it scores. Text from scores, nothing by hand."""

from collections.abc import Mapping, Sequence
from statistics import mean, stdev

from recipe.sizes import STAGES, STUDENT, Stage
from recipe.stage import config_of

Scores = Mapping[str, Mapping[str, float]]  # form -> task -> share of right answers


def card(name: str, scores: Mapping[str, Scores], context: str) -> str:
    """Markdown. `scores` are those of the stages that were evaluated, `context` says where and when."""
    stage = next(stage for stage in STAGES if stage.name == name)
    parts = [_head(stage), _forms(scores[name]), _comparison(scores), _how(stage), context]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(stage: Stage) -> str:
    num_parameters = sum(
        rows[0] * (rows[1] if len(rows) > 1 else 1) for rows in config_of(stage).parameter_shapes().values()
    )
    return f"""# gemline-demo

A Gemma 2 of {num_parameters / 1e6:.1f} million parameters that gemline runs when no model is named.
It greets, remembers what it is told, adds two numbers of two digits, names capitals (the G7's first), makes lists
and JSON, copies, and finds a code in a long text. It knows nothing else, says so at best, and makes things up at worst.

English only; {STUDENT["num_hidden_layers"]} layers, every second with a window of {STUDENT["sliding_window"]} tokens; \
context {STUDENT["max_position_embeddings"]}; vocabulary {STUDENT["vocab_size"]}; bfloat16.
Apache-2.0, as gemline. No weights of Google's Gemma are in it. The Python it has seen is CPython's standard library
(PSF licence)."""


def _forms(scores: Scores) -> str:
    """A column for each way the engine computes it."""
    forms = [form for form in ("bfloat16", "int8", "int4", "ablated") if form in scores]
    rows = [[task, *(_percent(scores[form].get(task)) for form in forms)] for task in scores["bfloat16"]]
    number = scores["asked"]["a row"]
    text = f"""## What is right, in percent

Of {number} questions a row: greedy answers of gemline's own engine, equal to the right one to the letter. The names,
codes and pairs of addends asked for are none that it was trained on ("17 + 25" is such, too). A needle is as many
tokens before the answer as its row says; "ablated" gives the global layers a window too.

{_table(["", *forms], rows)}"""
    bits = scores.get("python", {}).get("bits per byte")
    return text if bits is None else f"{text}\n\nHeld-out files of Python's standard library: {bits:.2f} bits a byte."


def _comparison(scores: Mapping[str, Scores]) -> str:
    """Students of several seeds, with a teacher and without."""
    columns = {"plain": _seeds(scores, "plain-"), "distilled": _seeds(scores, "distilled-")}
    columns = {kind: found for kind, found in columns.items() if found}
    if len(columns) < 2:
        return ""
    teacher = scores.get("teacher")
    tasks = next(iter(columns.values()))[0]["bfloat16"]
    header = ["", *(f"{kind} ({len(found)} seeds)" for kind, found in columns.items())]
    rows = [[task, *(_spread([s["bfloat16"][task] for s in found]) for found in columns.values())] for task in tasks]
    asked = next(iter(columns.values()))[0]["asked"]["a row"]
    num_tokens = next(stage.num_tokens for stage in STAGES if stage.name.startswith("plain-"))
    losses = {kind: [s["held out"]["nats a token"] for s in found] for kind, found in columns.items()}
    rows.append(["held-out loss", *(f"{mean(nats):.3f} ± {stdev(nats):.3f}" for nats in losses.values())])
    if teacher:
        header.append("teacher")
        rows = [[*row, _percent(teacher["bfloat16"].get(row[0]))] for row in rows]
        rows[-1][-1] = f"{teacher['held out']['nats a token']:.3f}"
    return f"""## What the teacher gives

The same student, data and order, {num_tokens / 1e6:.1f} million tokens (the shipped model had more); right answers in
percent of {asked} a row, mean and standard deviation over seeds. The loss is the cross entropy of
held-out answers, in nats a token: less is better.

{_table(header, rows)}"""


def _how(stage: Stage) -> str:
    taught = "from a teacher" if stage.teacher else "without a teacher"
    return f"""## How it was made

`deploy/demo/train.py`, stage {stage.name}, {taught}: {stage.num_tokens / 1e6:.1f} million tokens of conversations made
by script from seed {stage.seed}, padding counted; answers alone are learned. A distilled student minimises half the
cross entropy plus half the forward KL from its teacher, both softened by a temperature of 1.5. Muon for matrices,
Adam for embeddings and norms.

This card: `deploy/demo/evaluate.py --full --per-task N {stage.name}`, `deploy/demo/evaluate.py --per-task N` of the
others, then `deploy/demo/ship.py {stage.name}`."""


def _seeds(scores: Mapping[str, Scores], prefix: str) -> list[Scores]:
    return [found for name, found in sorted(scores.items()) if name.startswith(prefix)]


def _spread(shares: Sequence[float]) -> str:
    return _percent(mean(shares)) + (f" ± {100 * stdev(shares):.1f}" if len(shares) > 1 else "")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *("---:" for _ in header[1:])], *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
