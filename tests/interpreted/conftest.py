"""Tests of the Triton kernels without a GPU: `TRITON_INTERPRET=1 pytest tests/interpreted`, in a process of its own.

Whether kernels are interpreted is decided when triton is first imported, so these tests are no part of another run.
"""

import os

collect_ignore_glob: list[str] = []
if os.environ.get("TRITON_INTERPRET") == "1":
    from support.triton_bfloat16 import mend_interpreter

    mend_interpreter()
else:
    collect_ignore_glob.append("test_*.py")
