"""The check at start passes the Triton backend, interpreted, and finds bugs that were put into its kernels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from interpreted import test_mutations
from interpreted.test_mutations import MUTATIONS, Battery, Mutation, mutated, passes

from gemline_kernels.backend import Quantization
from gemline_kernels.gpu import backend
from gemline_kernels.selfcheck import SelfCheckFailedError, check
from gemline_kernels.selfcheck.attention import check_attention
from gemline_kernels.selfcheck.linear import check_linear
from gemline_kernels.selfcheck.pointwise import check_pointwise

MODELS: dict[str, dict[str, Any]] = {
    "small window": {"scale": 16**-0.5, "cap": 50.0, "window": 70, "head_dim": 16},
    "window of one": {"scale": 0.2, "cap": 30.0, "window": 1, "head_dim": 32},
}
MODEL = MODELS["small window"]


@pytest.mark.parametrize(
    ("model", "dtype", "quantization"),
    [("small window", torch.bfloat16, "fp8"), ("window of one", torch.float32, "none")],
    ids=["fp8", "plain"],
)
def test_it_passes(model: str, dtype: torch.dtype, quantization: Quantization) -> None:
    check(backend, dtype, quantization, **MODELS[model])


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [
        *[(torch.float32, each) for each in ("int8", "int4", "fp8")],
        *[(torch.bfloat16, each) for each in ("none", "int8", "int4")],
    ],
    ids=str,
)
def test_its_products_pass_in_the_other_precisions(dtype: torch.dtype, quantization: Quantization) -> None:
    check_linear(backend, dtype, quantization)


@pytest.mark.parametrize(("model", "dtype"), [("small window", torch.float32), ("window of one", torch.bfloat16)])
def test_its_attention_passes_in_the_other_dtype(model: str, dtype: torch.dtype) -> None:
    check_attention(backend, dtype, **MODELS[model])


PRECISIONS: tuple[Quantization, ...] = ("fp8", "none", "int4")


def check_products(first: Quantization = "fp8") -> None:
    for quantization in sorted(PRECISIONS, key=lambda one: one != first):
        check_linear(backend, torch.bfloat16, quantization)


CHECKS: dict[Battery, Callable[[], None]] = {
    test_mutations.attend: partial(check_attention, backend, torch.bfloat16, **MODEL),
    test_mutations.plan: partial(check_attention, backend, torch.bfloat16, **MODEL),
    test_mutations.norm: partial(check_pointwise, backend, torch.bfloat16, MODEL["head_dim"]),
    test_mutations.rotate: partial(check_pointwise, backend, torch.bfloat16, MODEL["head_dim"]),
    test_mutations.activate: check_products,
    test_mutations.multiply: check_products,
}
NOT_FOUND = {
    "tanh that overflows": "no score is 44 times the cap",
    "split ignores the window": "results are right, only late",
    "padding is written": "no backend is given any",
    "fp8 without subnormals": "less than activations in 8 bits may be off by",
}


@pytest.mark.parametrize(
    "mutation",
    [mutation for mutation in MUTATIONS if mutation.battery in CHECKS and mutation.name not in NOT_FOUND],
    ids=lambda mutation: mutation.name,
)
def test_it_finds(mutation: Mutation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mutated(monkeypatch, tmp_path, mutation)

    def find() -> None:
        with pytest.raises(SelfCheckFailedError):
            if mutation.name.startswith("nibbles"):
                check_products("int4")  # where they are: the others would pass, in seconds
            CHECKS[mutation.battery]()

    assert passes(find)
