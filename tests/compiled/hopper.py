"""Compiles a Triton kernel for an H100 where there is none, and reads what the assembler made of it."""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # what is the default until 3.9 and asks to be said
MOST_SHARED_BYTES = 227 * 1024  # of one program
_TARGET = GPUTarget("cuda", 90, 32)
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_REGISTERS, _SHARED_BYTES, _WARPS, _PROGRAMS = 65536, 228 * 1024, 64, 32  # of a processor
_REGISTER_UNIT = 256  # registers are given to warps in these


@dataclass(frozen=True)
class Variant:
    """A kernel with all that it is compiled for: types of its arguments, in Triton's words, and constants."""

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, int | float | bool]
    options: Mapping[str, int]


@dataclass(frozen=True)
class Resources:
    """What one variant takes. Spills are loads and stores of registers that did not fit."""

    registers: int
    spills: int
    shared_bytes: int
    programs_per_processor: int
    tensor_core_instructions: int


def compile_variant(variant: Variant) -> Resources:
    """Pointers, and integers that are strides, count as multiples of 16, as they are at run time."""
    names = variant.kernel.arg_names
    missing = set(names) - set(variant.types) - set(variant.constants)
    assert not missing, f"{variant.name}: no type or constant for {', '.join(sorted(missing))}"
    source = ASTSource(
        variant.kernel,
        {name: "constexpr" if name in variant.constants else variant.types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in variant.constants.items()},
        attrs={
            (index,): [["tt.divisibility", 16]]
            for index, name in enumerate(names)
            if name not in variant.constants and variant.types[name].startswith("*")
        },
    )
    compiled = triton.compile(source, target=_TARGET, options=dict(variant.options))
    warps = variant.options.get("num_warps", 4)
    return _read(compiled.asm["cubin"], compiled.metadata.shared, warps)


def _read(cubin: bytes, shared_bytes: int, warps: int) -> Resources:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _run("cuobjdump", "--dump-resource-usage", file.name)
        code = _run("nvdisasm", "-c", file.name)
    registers = int(re.findall(r"REG:(\d+)", usage)[-1])
    by_warp = -(-registers * 32 // _REGISTER_UNIT) * _REGISTER_UNIT
    fitting = (_REGISTERS // (by_warp * warps), _SHARED_BYTES // (shared_bytes + 1024), _WARPS // warps, _PROGRAMS)
    return Resources(
        registers=registers,
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        shared_bytes=shared_bytes,
        programs_per_processor=min(fitting),
        tensor_core_instructions=len(re.findall(r"\b[HIQ]G?MMA\b", code)),
    )


def _run(tool: str, *arguments: str) -> str:
    return subprocess.run([str(_TOOLS / tool), *arguments], capture_output=True, text=True, check=True).stdout
