"""Linears, the gated pair and the embedding against the dequantised weights in float64.

A backend may quantise activations to 8 bits, a token's row at a time, when the weights are quantised. That moves each
activation by an error that is spread evenly over a step of max|x| / 127, hence a product by one with the deviation
step / sqrt(12) * |weight row|. The bound is six of these, beyond the rounding of the result.
"""

import torch

from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.quantize import Int4Groups, quantize_fp8, quantize_int4, quantize_int8
from gemline_kernels.selfcheck.compare import compare, rounding

_NUM_OUTPUTS, _NUM_INPUTS = 83, 330  # multiples of nothing
_NUM_ROWS = (1, 5, 40, 70)  # kernels for few rows end at some power of two
_ACTIVATION = "gelu_pytorch_tanh"
_STEEPEST = 1.13  # the largest slope of gelu


def check_linear(backend: Backend, dtype: torch.dtype, quantization: Quantization) -> None:
    """`linear` with and without bias, `gated`, `embedding`, for one row, a few and many; int4 groups as they come."""
    random = torch.Generator().manual_seed(0)
    weights = 0.1 * torch.randn((3, _NUM_OUTPUTS, _NUM_INPUTS), generator=random)
    weight, gate, up = (part.to(dtype) for part in weights)
    bias = torch.randn((_NUM_OUTPUTS,), generator=random).to(dtype)
    rows = [torch.randn((num_rows, _NUM_INPUTS), generator=random).to(dtype) for num_rows in _NUM_ROWS]
    for x_TD in rows:
        _check_linear(backend, x_TD, weight, bias, quantization)
        _check_gated(backend, x_TD, gate, up, quantization)
        _check_embedding(backend, x_TD, weight, quantization)


def _exact(weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    match quantization:
        case "none":
            return weight.double()
        case "int8":
            return quantize_int8(weight).dequantized().double()
        case "int4":
            return quantize_int4(weight).dequantized().double()
        case "fp8":
            return quantize_fp8(weight).dequantized().double()


def _product_error(x_TD: torch.Tensor, weight: torch.Tensor, quantization: Quantization) -> torch.Tensor:
    """What x . weight^T may be off by before it is rounded, [T, N]."""
    lengths_N: torch.Tensor = torch.linalg.vector_norm(weight, dim=-1)
    if quantization == "none":
        x_lengths_T1: torch.Tensor = torch.linalg.vector_norm(x_TD.double(), dim=-1, keepdim=True)
        return 1e-5 * x_lengths_T1 * lengths_N
    step_T1 = x_TD.double().abs().amax(dim=-1, keepdim=True) / 127
    return 6 * step_T1 / 12**0.5 * lengths_N


def _check_linear(
    backend: Backend, x_TD: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, quantization: Quantization
) -> None:
    exact, device = _exact(weight, quantization), backend.device
    error, relative = _product_error(x_TD, exact, quantization), rounding(x_TD.dtype)
    for given in (None, bias):
        products = x_TD.double() @ exact.T
        expected = products if given is None else products + given.double()
        case = f"{quantization}, {len(x_TD)} rows, bias: {given is not None}"
        packed = backend.linear(weight.to(device), None if given is None else given.to(device), quantization)
        actual = packed(x_TD.to(device))
        bound = error + relative * (products.abs() + expected.abs()) + 1e-6
        # Products may be rounded before the bias is added.
        compare("linear", case, actual, expected, bound)
        if quantization == "int4":
            bias_N = None if given is None else given.to(device)
            ready = backend.linear_int4(_groups(weight, device), bias_N)(x_TD.to(device))
            compare("linear_int4", case, ready, expected, bound)


def _check_gated(
    backend: Backend, x_TD: torch.Tensor, gate: torch.Tensor, up: torch.Tensor, quantization: Quantization
) -> None:
    exact_gate, exact_up = _exact(gate, quantization), _exact(up, quantization)
    gates, ups = x_TD.double() @ exact_gate.T, x_TD.double() @ exact_up.T
    relative = rounding(x_TD.dtype)  # of gate and up themselves, too, if a backend rounds them
    gate_error = _STEEPEST * (_product_error(x_TD, exact_gate, quantization) + relative * gates.abs())
    up_error = _product_error(x_TD, exact_up, quantization) + relative * ups.abs()
    active = torch.nn.functional.gelu(gates, approximate="tanh")
    bound = gate_error * (ups.abs() + up_error) + up_error * active.abs() + relative * (active * ups).abs() + 1e-6
    device = backend.device
    actual = backend.gated(gate.to(device), up.to(device), _ACTIVATION, quantization)(x_TD.to(device))
    compare("gated", f"{quantization}, {len(x_TD)} rows", actual, active * ups, bound)
    if quantization == "int4":
        ready = backend.gated_int4(_groups(gate, device), _groups(up, device), _ACTIVATION)(x_TD.to(device))
        compare("gated_int4", f"{len(x_TD)} rows", ready, active * ups, bound)


def _groups(weight: torch.Tensor, device: torch.device) -> Int4Groups:
    return quantize_int4(weight).to(device)


def _check_embedding(backend: Backend, x_TD: torch.Tensor, weight: torch.Tensor, quantization: Quantization) -> None:
    exact = _exact(weight, "none" if quantization == "none" else "int8")
    device, relative, scale, cap = backend.device, rounding(x_TD.dtype), 3.25, 2.0
    embedding = backend.embedding(weight.to(device), quantization)
    token_ids = torch.arange(0, _NUM_OUTPUTS, 7)
    rows, expected = embedding.rows(token_ids.to(device), scale), exact[token_ids] * scale
    compare("embedding", f"{quantization}, rows", rows, expected, relative * expected.abs())
    products = x_TD.double() @ exact.T
    # A head's products may be rounded to the model's dtype before the cap, as the published code's are.
    bound = _product_error(x_TD, exact, quantization) + relative * products.abs() + 1e-6
    case, x = f"{quantization}, logits of {len(x_TD)} rows", x_TD.to(device)
    compare("embedding", case, embedding.logits(x, cap), cap * torch.tanh(products / cap), bound)
    compare("embedding", case + " without cap", embedding.logits(x, None), products, bound)
