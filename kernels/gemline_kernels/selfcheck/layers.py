"""A backend that runs all layers in one go against the same operations called one by one."""

from dataclasses import dataclass

import torch

from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.layers import KeysValues, LayerWeights, PlainLayers, Stack
from gemline_kernels.reference import rope_table
from gemline_kernels.selfcheck.compare import compare

_WIDTH, _INNER = 80, 96
_HEADS, _GROUPS = 4, 2
_BLOCK_SIZE, _WINDOW = 4, 5
_LENGTHS = ((1, 11), (7, 9), (1, 1), (3, 3))


@dataclass(frozen=True, slots=True)
class _Step:
    """A mixed batch; the blocks of layers with a window lie the other way round."""

    positions_T: torch.Tensor
    global_slots_T: torch.Tensor
    local_slots_T: torch.Tensor
    global_table_BP: torch.Tensor
    local_table_BP: torch.Tensor
    query_start: torch.Tensor
    context_len: torch.Tensor
    sample_rows: torch.Tensor


def check_layers(
    backend: Backend, dtype: torch.dtype, quantization: Quantization, *, scale: float, cap: float | None, head_dim: int
) -> None:
    """To the bit, with all rows wanted, with the last of each sequence, and with none. Nothing where there is no go."""
    random = torch.Generator().manual_seed(0)
    stack = _make_stack(backend, dtype, quantization, scale, cap, head_dim, random)
    layers, plain = backend.layers(stack), PlainLayers(backend, stack)
    if isinstance(layers, PlainLayers):
        return
    num_rows = sum(rows for rows, _ in _LENGTHS)
    last_rows = torch.tensor([rows for rows, _ in _LENGTHS]).cumsum(0) - 1
    residual_TD = torch.randn((num_rows, _WIDTH), generator=random).to(dtype)
    for sample_rows in (torch.arange(num_rows), last_rows, last_rows[:0]):
        step = _make_step(sample_rows)
        shape = (2, int(step.global_table_BP.max()) + 1, _BLOCK_SIZE, _GROUPS, head_dim)
        pools = [[KeysValues(*torch.zeros(shape, dtype=dtype)) for _ in stack.layers] for _ in range(2)]
        case = f"{quantization}, {len(sample_rows)} of {num_rows} rows"
        compare("layers", case, layers(residual_TD, step, pools[0]), plain(residual_TD, step, pools[1]).double(), 0.0)
        for at_once, one_by_one in zip(*pools, strict=True):
            compare("layers", case + ", keys", at_once.keys, one_by_one.keys.double(), 0.0)
            compare("layers", case + ", values", at_once.values, one_by_one.values.double(), 0.0)


def _make_stack(
    backend: Backend,
    dtype: torch.dtype,
    quantization: Quantization,
    scale: float,
    cap: float | None,
    head_dim: int,
    random: torch.Generator,
) -> Stack:
    def weight(num_outputs: int, num_inputs: int) -> torch.Tensor:
        values = torch.randn((num_outputs, num_inputs), generator=random)
        return values.div_(float(num_inputs) ** 0.5).to(dtype)

    def norm() -> torch.Tensor:
        return (0.3 * torch.randn(_WIDTH, generator=random)).to(dtype)

    def layer(window: int | None) -> LayerWeights:
        return LayerWeights(
            window=window,
            query_key_value=backend.linear(weight((_HEADS + 2 * _GROUPS) * head_dim, _WIDTH), None, quantization),
            attention_out=backend.linear(weight(_WIDTH, _HEADS * head_dim), None, quantization),
            gate_up=backend.gated(weight(_INNER, _WIDTH), weight(_INNER, _WIDTH), "gelu_pytorch_tanh", quantization),
            down=backend.linear(weight(_WIDTH, _INNER), None, quantization),
            post_attention_norm_D=norm(),
            pre_feedforward_norm_D=norm(),
            post_feedforward_norm_D=norm(),
            next_norm_D=norm(),
        )

    layers = (layer(_WINDOW), layer(None))
    return Stack(layers, norm(), rope_table(16, head_dim, 10000.0), _HEADS, _GROUPS, head_dim, scale, cap, 1e-6)


def _make_step(sample_rows: torch.Tensor) -> _Step:
    num_pages = -(-max(context for _, context in _LENGTHS) // _BLOCK_SIZE)
    table_BP = torch.arange(len(_LENGTHS) * num_pages).view(len(_LENGTHS), num_pages)
    other_BP = table_BP.flip(0).contiguous()
    rows, context_len = (torch.tensor(numbers) for numbers in zip(*_LENGTHS, strict=True))
    positions_T = torch.cat([torch.arange(context - num_rows, context) for num_rows, context in _LENGTHS])
    at = torch.arange(len(_LENGTHS)).repeat_interleave(rows), positions_T // _BLOCK_SIZE
    offsets_T = positions_T % _BLOCK_SIZE
    return _Step(
        positions_T,
        table_BP[at] * _BLOCK_SIZE + offsets_T,
        other_BP[at] * _BLOCK_SIZE + offsets_T,
        table_BP,
        other_BP,
        torch.cat((torch.zeros(1, dtype=torch.int64), rows.cumsum(0))),
        context_len,
        sample_rows,
    )
