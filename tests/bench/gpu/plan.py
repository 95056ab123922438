"""Everything that is measured, the most important first. Imports none of it."""

from typing import NamedTuple


class Planned(NamedTuple):
    """A section."""

    function: str
    share_s: float  # after which its next case is left out
    patience_s: float = 60.0  # with a case, before it counts as hanging


DECODE, PREFILL, STEP, LINEARS = "decode attention", "prefill attention", "decode step", "linears"
SECTIONS = {
    "peaks": Planned("bench.gpu.peaks:peaks", 20),
    DECODE: Planned("bench.gpu.attention:decode", 80),
    PREFILL: Planned("bench.gpu.attention:prefill", 40),
    STEP: Planned("bench.gpu.steps:steps", 110),
    "transformers, graph": Planned("bench.gpu.hugging_face:graphs", 90),
    "FlexAttention": Planned("bench.gpu.peers:flexible", 100, 120),
    "SDPA": Planned("bench.gpu.peers:uncapped", 20),
    LINEARS: Planned("bench.gpu.linears:linears", 60),
    "sampling": Planned("bench.gpu.sampling:sampling", 20),
    "more decode steps": Planned("bench.gpu.steps:more_steps", 60),
    "transformers, compiled": Planned("bench.gpu.hugging_face:compiled", 150, 150),
}
TUNING = {
    "peaks": SECTIONS["peaks"],
    "tune decode": Planned("bench.gpu.tune:decode", 250, 120),
    "tune prefill": Planned("bench.gpu.tune:prefill", 120, 120),
    "tune linears": Planned("bench.gpu.tune:linears", 250, 120),
}
EVERYTHING = SECTIONS | TUNING
