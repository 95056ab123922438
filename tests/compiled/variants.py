"""Every kernel at the sizes of the three models, with the constants and options of its launch."""

from collections.abc import Iterator
from typing import NamedTuple

import triton
from compiled.hopper import Variant

from gemline_kernels.gpu import attention
from gemline_kernels.gpu.device import (
    decode_attention,
    decode_plan,
    linear,
    pointwise,
    prefill_attention,
    sampling,
    transfer,
)


class Model(NamedTuple):
    name: str
    width: int  # D
    inner: int  # F
    num_heads: int
    num_groups: int
    head_dim: int


MODELS = (
    Model("2b", 2304, 9216, 8, 4, 256),
    Model("9b", 3584, 14336, 16, 8, 256),
    Model("27b", 4608, 36864, 32, 16, 128),
)
BLOCK_SIZE, CAP = 64, 50.0
_I32, _F32 = "i32", "fp32"


def variants() -> Iterator[Variant]:
    for window in (None, 4096):
        yield _plan(window)
    for model in MODELS:
        for window in (None, 4096):
            shape = attention.Shape(model.num_heads, model.num_groups, model.head_dim, BLOCK_SIZE, window, CAP)
            for stored in ("bf16", "fp8e4nv"):
                yield from _attention(model, shape, stored)
        yield from _pointwise(model)
        yield from _linears(model)
        yield from _transfer(model)
    yield from _sampling()


def _plan(window: int | None) -> Variant:
    constants = {"SEQUENCES": 64, "ITEMS": 264, "TILE": 32, "WINDOW": window or 0, "CHUNK": 0, "ITEM_BLOCK": 32}
    types = {"context_len": "*i32", "items": "*i32", "first_item": "*i32", "num_sequences": _I32}
    return Variant(f"plan_decode, window {window or 0}", decode_plan.plan_decode, types, constants, {})


def _attention(model: Model, shape: attention.Shape, stored: str) -> Iterator[Variant]:
    label = f"{model.name}, window {shape.window or 0}, {stored} cache"
    cache = {"keys": f"*{stored}", "values": f"*{stored}", "table": "*i32", "table_width": _I32}
    common = {**cache, "query": "*bf16", "context_len": "*i32", "items": "*i32", "scale": _F32, "value_scale": _F32}
    partial = {"partial_out": "*fp32", "partial_sum": "*fp32", "query_row": "*i32"}
    yield Variant(
        f"decode_attention {label}",
        decode_attention.decode_attention,
        common | partial,
        shape.decode_constants(),
        attention.DECODE_OPTIONS,
    )
    yield Variant(
        f"prefill_attention {label}",
        prefill_attention.prefill_attention,
        common | {"query_start": "*i32", "out": "*bf16"},
        shape.prefill_constants(),
        attention.PREFILL_OPTIONS,
    )


def _pointwise(model: Model) -> Iterator[Variant]:
    row = {"WIDTH": model.width, "COLUMNS": triton.next_power_of_2(model.width)}
    norm = {"x": "*bf16", "weight": "*bf16", "out": "*bf16", "eps": _F32}
    yield Variant(f"rms_norm {model.name}", pointwise.rms_norm, norm, row, {"num_warps": 8})
    added = {"residual": "*bf16", "post_weight": "*bf16", "next_weight": "*bf16", "new": "*bf16"}
    yield Variant(f"add_norm {model.name}", pointwise.add_norm, norm | added, row, {"num_warps": 8})
    ids = {"token_ids": "*i64", "first_weight": "*bf16", "residual": "*bf16", "scale": _F32}
    yield Variant(f"embed {model.name}", pointwise.embed, norm | ids, row, {"num_warps": 8})
    inner = {"WIDTH": model.inner, "COLUMNS": 1024}
    yield Variant(f"geglu {model.name}", pointwise.geglu, {"gate_up": "*bf16", "out": "*bf16"}, inner, {})
    for stored in ("bf16", "fp8e4nv"):
        types = {
            **{name: "*bf16" for name in ("projected", "query")},
            **{name: f"*{stored}" for name in ("keys", "values")},
            **{name: "*fp32" for name in ("cos", "sin")},
            **{name: "*i64" for name in ("positions", "slots")},
            **{name: _F32 for name in ("key_factor", "value_factor")},
        }
        heads = {"HEADS": model.num_heads, "GROUPS": model.num_groups, "WIDTH": model.head_dim}
        yield Variant(f"rope_write {model.name}, {stored} cache", pointwise.rope_write, types, heads, {"num_warps": 1})
    sums = {"partial_out": "*fp32", "partial_sum": "*fp32", "first_item": "*i32", "query_row": "*i32", "out": "*bf16"}
    heads = {"HEADS": model.num_heads, "WIDTH": model.head_dim, "ITEMS": attention.COMBINED_ITEMS}
    yield Variant(
        f"softcap {model.name}",
        pointwise.softcap,
        {"x": "*bf16", "out": "*fp32", "num_values": _I32},
        {"CAP": 30.0, "COLUMNS": 1024},
        {},
    )
    yield Variant(f"combine {model.name}", decode_attention.combine, sums, heads, {})


def _linears(model: Model) -> Iterator[Variant]:
    for rows in (16, 64):
        sizes = {"ROWS": rows, "OUTPUTS": 2 * model.inner, "INPUTS": model.width, "SPLITS": 1, "COLUMNS": 32}
        types = {"x": "*bf16", "partial": "*fp32", "num_rows": _I32}
        for stored in ("i8", "fp8e4nv"):
            yield Variant(
                f"byte_linear {model.name}, {rows} rows, {stored}",
                linear.byte_linear,
                types | {"weight": f"*{stored}"},
                sizes | {"STEP": 128, "STAGES": 4},
                {},
            )
        yield Variant(
            f"nibble_linear {model.name}, {rows} rows",
            linear.nibble_linear,
            types | {"weight": "*u8", "scale": "*bf16"},
            sizes | {"GROUP": 128, "STAGES": 4},
            {},
        )
    finish = {"partial": "*fp32", "scale": "*fp32", "bias": "*bf16", "out": "*bf16", "num_rows": _I32}
    constants = {"OUTPUTS": 2 * model.inner, "SPLITS": 2, "COLUMNS": 256, "CAP": 0.0}
    flags = {"HAS_SCALE": True, "HAS_BIAS": False, "GATED": True}
    yield Variant(f"finish {model.name}, gated", linear.finish, finish, constants | flags, {})


def _transfer(model: Model) -> Iterator[Variant]:
    types = {name: "*bf16" for name in ("keys", "values")} | {"slots": "*i64", "key_factor": _F32, "value_factor": _F32}
    types |= {name: _I32 for name in ("first_group", "groups", "num_tokens")}
    sizes = {"POOL_GROUPS": model.num_groups, "WIDTH": model.head_dim, "TOKENS": 16}
    for wire in ("bf16", "fp8e4nv"):
        yield Variant(f"pack {model.name} to {wire}", transfer.pack, types | {"out": f"*{wire}"}, sizes, {})
        yield Variant(f"unpack {model.name} from {wire}", transfer.unpack, types | {"packed": f"*{wire}"}, sizes, {})


def _sampling() -> Iterator[Variant]:
    """Of 256000 tokens in 63 chunks."""
    types = {name: "*i64" for name in ("edge", "keep", "need", "mass", "counts", "masses", "seed", "position")}
    types |= {name: "*i64" for name in ("chunk_mass", "chunk_equal", "chunk_one")}
    types |= {name: "*i32" for name in ("chunk_token", "row_token", "is_active", "top_k", "out")}
    types |= {name: "*fp32" for name in ("logits", "chunk_max", "row_max", "temperature", "min_p", "top_p")}
    types |= {name: _I32 for name in ("vocab_size", "num_chunks", "first_token", "first_chunk", "num_own")}
    chunk, chunks = {"CHUNK": 4096}, {"CHUNKS": 64}
    for kernel, constants in (
        (sampling.survey, chunk),
        (sampling.begin, chunks),
        (sampling.count, chunk | {"SHIFT": 24}),
        (sampling.count, chunk | {"SHIFT": 0}),
        (sampling.narrow, {"SHIFT": 24, "BY_MASS": False}),
        (sampling.narrow, {"SHIFT": 0, "BY_MASS": True}),
        (sampling.turn_to_mass, {}),
        (sampling.total, chunk),
        (sampling.draw, chunk | chunks),
    ):
        shift = f", bits from {constants['SHIFT']}" if "SHIFT" in constants else ""
        yield Variant(f"{kernel.fn.__name__}{shift}", kernel, types, constants, {})
