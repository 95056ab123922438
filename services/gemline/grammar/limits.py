"""How large a constraint may be, and how long anything about it may take. For gateways and workers alike."""

from dataclasses import dataclass

MAX_BYTES = 64 * 1024  # of a constraint's text, in UTF-8
MAX_DEPTH = 64  # of a JSON schema: objects and lists in each other


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """What a worker grants one constraint. Fuel and items are llguidance's own counts of work; times are in seconds.

    llguidance cannot be interrupted. Its own counts end whatever it does within about a tenth of a second; our times
    are for what they do not see, and for a machine that is busy.
    """

    compile_s: float = 5.0
    queue_s: float = 30.0  # until a thread is free to compile; the vocabulary may have to be made before
    step_s: float = 1.0  # for the mask of one step
    max_queued: int = 256  # constraints that wait to be compiled
    num_cached: int = 32  # compiled ones that are kept for those who ask again
    initial_lexer_fuel: int = 100_000
    step_lexer_fuel: int = 100_000
    step_max_items: int = 20_000
    max_items_in_row: int = 2_000
    max_lexer_states: int = 50_000
    max_grammar_size: int = 100_000
