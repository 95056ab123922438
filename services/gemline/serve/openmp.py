"""How long an engine's idle threads spin before they sleep. Knows no torch: it has to speak before torch is there."""

import os

# Between two products of a step a thread waits for tens of microseconds, after a step for longer. Measured with the
# bench checkpoint in int8 on 2 cores: about 0.2 ms of spinning keeps the speed of spinning on (15.8 against 16.6 ms a
# step; 19.4 ms without any), and once somebody else wants the cores a step takes 58 ms instead of 158.
_SPIN_COUNT = "5000"
_OPERATORS_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def limit_spinning() -> None:
    """Sets GOMP_SPINCOUNT for this process, unless the operator has said how to wait.

    libgomp reads it once, when it is loaded: call this before torch is imported.
    """
    if not any(name in os.environ for name in _OPERATORS_OWN):
        os.environ["GOMP_SPINCOUNT"] = _SPIN_COUNT
