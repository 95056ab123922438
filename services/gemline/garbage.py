"""When Python looks for garbage in a process that serves: not while it starts, and never through what it started with.

Torch and all else that is imported are some 200 thousand objects that stay. To look through them takes 50 to 100 ms:
several times during the imports, again and again while streams wait, and more than once at the end.
"""

import gc
import sys


def starting() -> None:
    """Look for none until `started`. To be called before the large imports."""
    gc.disable()


def started() -> None:
    """What is there by now stays; from here on only what is new is looked through."""
    gc.collect()
    gc.freeze()
    gc.enable()


def ending() -> None:
    """To be called last. Triton's library would complain of all that Python leaves over, so there nothing is."""
    if "triton" in sys.modules:
        gc.unfreeze()
