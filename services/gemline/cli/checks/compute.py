"""What an engine on this machine would compute with: compiler, native library, backend, and whether it is right.

Compiles nothing: a library that is still to be built is told, not built.
"""

import subprocess

from gemline.cli.checks.check import Check, attempt, ok, warning

_HEAD_DIM, _CAP, _WINDOW = 256, 50.0, 4096  # Gemma 2's own


def checks() -> list[Check]:
    """Every finding about the CPU's backend."""
    return [
        attempt("compiler", _compiler),
        attempt("native library", _library),
        attempt("backend", _backend),
        attempt("self-check", _selfcheck, "do not serve with it; report it with this machine's CPU"),
    ]


def _compiler() -> Check:
    from gemline_kernels.cpu.build import find_compiler

    program = find_compiler()
    if program is None:
        return warning("compiler", "no C++ compiler", "install g++: the native backend is compiled with it")
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=10, check=False)
    return ok("compiler", said.stdout.partition("\n")[0] or program)


def _library() -> Check:
    from gemline_kernels.cpu.build import find_library
    from gemline_kernels.cpu.native import missing_cpu_flags

    if missing := missing_cpu_flags():
        return ok("native library", f"not for this CPU: it lacks {' '.join(missing)}")
    if _is_to_be_built():
        return ok("native library", "not built: the first worker will, or `python -m gemline_kernels.cpu.build` now")
    return ok("native library", str(find_library() or "not built"))


def _is_to_be_built() -> bool:
    """Whether asking for the machine's backend would compile one for its CPU."""
    from gemline_kernels.choose import has_gpu
    from gemline_kernels.cpu.build import find_compiler, find_library
    from gemline_kernels.cpu.native import missing_cpu_flags

    return not has_gpu() and not missing_cpu_flags() and find_library() is None and find_compiler() is not None


def _backend() -> Check:
    from gemline_kernels.choose import choice

    if _is_to_be_built():
        return ok("backend", "native, once it is built")
    backend, why, is_fallback = choice()
    found = f"{backend.name}: {why.partition(chr(10))[0]}"
    return warning("backend", found, "it works, slower") if is_fallback else ok("backend", found)


def _selfcheck() -> Check:
    import torch

    from gemline_kernels import selfcheck
    from gemline_kernels.choose import choice

    if _is_to_be_built():
        return ok("self-check", "not run: there is no library yet")
    backend = choice().backend
    selfcheck.check(
        backend, torch.bfloat16, "int8", scale=_HEAD_DIM**-0.5, cap=_CAP, window=_WINDOW, head_dim=_HEAD_DIM
    )
    return ok("self-check", f"{backend.name} computes right, within rounding")
