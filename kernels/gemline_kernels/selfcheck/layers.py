"""A backend that runs all layers in one go against the same operations called one by one."""

from dataclasses import dataclass

import torch

from gemline_kernels.backend import Backend, Quantization
from gemline_kernels.layers import KeysValues, LayerWeights, PlainLayers, Stack
from gemline_kernels.reference import rope_table
from gemline_kernels.selfcheck.compare import compare

_WIDTH, _INNER = 80, 96
_HEADS, _GROUPS = 4, 2
_BLOCK_SIZE, _WINDOW = 16, 21
_LENGTHS = ((1, 43), (7, 35), (1, 1), (3, 3))
_LONGEST = 43


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
    """To the bit, with all rows wanted, with the last of each sequence, and with none.

    Nothing where the backend's layers are `PlainLayers` itself.
    """
    random = torch.Generator().manual_seed(0)
    stack = _make_stack(backend, dtype, quantization, scale, cap, head_dim, random)
    layers, plain = backend.layers(stack), PlainLayers(backend, stack)
    if type(layers) is PlainLayers:
        return
    num_rows = sum(rows for rows, _ in _LENGTHS)
    last_rows = torch.tensor([rows for rows, _ in _LENGTHS]).cumsum(0) - 1
    residual_TD = torch.randn((num_rows, _WIDTH), generator=random).to(backend.device, dtype)
    for sample_rows in (torch.arange(num_rows), last_rows, last_rows[:0]):
        step = _make_step(sample_rows, backend.device)
        shape = (2, int(step.global_table_BP.max()) + 1, _BLOCK_SIZE, _GROUPS, head_dim)
        before = torch.randn(shape, generator=random).to(backend.device, dtype)
        pools = [[KeysValues(*before.clone()) for _ in stack.layers] for _ in range(2)]
        case = f"{quantization}, {len(sample_rows)} of {num_rows} rows"
        _compare(case, layers(residual_TD, step, pools[0]), plain(residual_TD, step, pools[1]))
        for at_once, one_by_one in zip(*pools, strict=True):
            _compare(case + ", keys", at_once.keys, one_by_one.keys)
            _compare(case + ", values", at_once.values, one_by_one.values)


def _compare(case: str, at_once: torch.Tensor, one_by_one: torch.Tensor) -> None:
    compare("layers", case, at_once, one_by_one.cpu().double(), 0.0)


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
        return values.div_(float(num_inputs) ** 0.5).to(backend.device, dtype)

    def norm() -> torch.Tensor:
        return (0.3 * torch.randn(_WIDTH, generator=random)).to(backend.device, dtype)

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
    table = rope_table(_LONGEST, head_dim, 10000.0, backend.device)
    return Stack(layers, norm(), table, _HEADS, _GROUPS, head_dim, scale, cap, 1e-6)


def _make_step(sample_rows: torch.Tensor, device: torch.device) -> _Step:
    num_pages = -(-_LONGEST // _BLOCK_SIZE)
    table_BP = torch.arange(len(_LENGTHS) * num_pages).view(len(_LENGTHS), num_pages)
    other_BP = table_BP.flip(0).contiguous()
    rows, context_len = (torch.tensor(numbers) for numbers in zip(*_LENGTHS, strict=True))
    positions_T = torch.cat([torch.arange(context - num_rows, context) for num_rows, context in _LENGTHS])
    at = torch.arange(len(_LENGTHS)).repeat_interleave(rows), positions_T // _BLOCK_SIZE
    offsets_T = positions_T % _BLOCK_SIZE
    return _Step(
        positions_T.to(device),
        (table_BP[at] * _BLOCK_SIZE + offsets_T).to(device),
        (other_BP[at] * _BLOCK_SIZE + offsets_T).to(device),
        table_BP.to(device),
        other_BP.to(device),
        torch.cat((torch.zeros(1, dtype=torch.int64), rows.cumsum(0))),
        context_len,
        sample_rows.to(device),
    )
