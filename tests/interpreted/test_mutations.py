"""Each of these bugs in a kernel is found by the tests beside this one: none of them only pass."""

import importlib
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from interpreted import (
    test_attention,
    test_divided_sampling,
    test_linear,
    test_pointwise,
    test_sampling,
    test_transfer,
)

import gemline_kernels.gpu.device
from gemline_kernels.gpu import attention, linear, pointwise, sampling, transfer
from gemline_kernels.gpu.chunks import Chunks

Battery = Callable[[], None]
LAUNCHERS = (attention, linear, pointwise, sampling, transfer)
FLOAT32 = torch.float32


def attend() -> None:
    """Decode and prefill, with a window and without, on blocks of two tiles."""
    test_attention.check(replace(test_attention.WIDE, lengths=((1, 130), (9, 150), (3, 3)), block_size=64))
    for more in (0, 1):
        test_attention.test_lengths_around_a_window_agree(more, 1)
        test_attention.test_lengths_around_a_window_agree(more, 37)
    test_attention.test_the_window_holds_exactly_that_many_keys(1)
    test_attention.test_the_window_holds_exactly_that_many_keys(3)
    test_attention.test_scores_far_below_and_far_beyond_the_cap_agree(50.0, 400.0)
    test_attention.test_groups_of_any_size_agree(6, 2, 1)
    test_attention.test_groups_of_any_size_agree(6, 2, 9)


def plan() -> None:
    for window in (None, 40):
        test_attention.test_a_plan_has_each_tile_once_and_no_idle_piece(window, 7, 32)
    test_attention.test_any_number_of_pieces_gives_the_same(None, 7)


def fp8() -> None:
    test_attention.test_fp8_keys_and_values_are_scaled_back(1)
    test_attention.test_fp8_keys_and_values_are_scaled_back(20)
    test_pointwise.test_rope_write_scales_and_saturates_what_becomes_fp8()


def norm() -> None:
    test_pointwise.test_rms_norm_multiplies_by_one_plus_weight(FLOAT32, (5, 24))
    test_pointwise.test_add_norm_adds_the_normed_and_norms_the_rounded_sum(FLOAT32, (5, 24))
    test_pointwise.test_add_norm_adds_the_normed_and_norms_the_rounded_sum(torch.bfloat16, (5, 24))


def rotate() -> None:
    test_pointwise.test_rope_write_rotates_queries_and_keys_and_fills_the_slots(FLOAT32, 4, 2, 16)
    test_pointwise.test_rope_write_of_a_padding_row_writes_nowhere()


def activate() -> None:
    test_pointwise.test_geglu_multiplies_the_activated_gate_by_up(FLOAT32, 24)


def multiply() -> None:
    for quantization in ("int8", "int4", "fp8"):
        test_linear.test_linear_agrees(quantization, 3, FLOAT32)
        test_linear.test_gated_agrees(quantization, 1, "gelu_pytorch_tanh")
    test_linear.test_an_embedding_agrees_by_rows_and_as_a_head("int8", 2)
    test_linear.test_every_fp8_value_arrives_as_it_is(FLOAT32)


def draw() -> None:
    test_sampling.test_the_engine_on_a_cpu_chooses_the_same(test_sampling.Row())
    test_sampling.test_of_equal_logits_the_first_are_likeliest()
    for row in (test_sampling.Row(top_k=7), test_sampling.Row(top_p=0.9)):
        test_sampling.test_the_engine_on_a_cpu_chooses_the_same(row)


def draw_among_ranks() -> None:
    test_divided_sampling.test_ranks_choose_what_one_device_does(2)
    test_divided_sampling.test_the_edge_is_where_it_is_among_the_tokens_of_all_ranks()
    test_divided_sampling.test_a_chunk_may_be_empty_and_a_rank_without_any_mass()


def move() -> None:
    test_transfer.test_those_slots_and_heads_arrive_and_no_others_change(17, range(1, 3))
    test_transfer.test_fp8_on_the_wire_is_rounded_once_and_saturates()


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    before: str
    after: str
    battery: Battery


MUTATIONS = (
    Mutation("window + 1", "tile", "key[None, :] < WINDOW", "key[None, :] <= WINDOW", attend),
    Mutation("window - 1", "tile", "key[None, :] < WINDOW", "key[None, :] < WINDOW - 1", attend),
    Mutation("decode window + 1", "decode_attention", "length - WINDOW, 0", "length - WINDOW - 1, 0", attend),
    Mutation(
        "not causal", "tile", "key[None, :] <= position[:, None]", "key[None, :] <= position[:, None] + 1", attend
    ),
    Mutation(
        "no mask on whole tiles' edge", "prefill_attention", "(earliest + 1) // TILE", "(latest + 1) // TILE", attend
    ),
    Mutation(
        "window's edge unmasked", "prefill_attention", "(latest_start + TILE - 1) // TILE", "start // TILE", attend
    ),
    Mutation("no cap", "scores", "(1.0 - 2.0 / (1.0 + growth)) * (CAP * LOG2_E)", "products * scale * LOG2_E", attend),
    Mutation("scale after cap", "scores", "products * (scale * (2.0", "products * ((2.0", attend),
    Mutation(
        "tanh that overflows", "scores", "(1.0 - 2.0 / (1.0 + growth))", "((growth - 1.0) / (growth + 1.0))", attend
    ),
    Mutation("wrong head", "decode_attention", "head = group * REPEATS + row", "head = row * GROUPS + group", attend),
    Mutation("wrong group", "tile", "(GROUPS * WIDTH) + offsets", "WIDTH + offsets", attend),
    Mutation("no offset in the block", "tile", " + tile * TILE % BLOCK_SIZE", "", attend),
    Mutation(
        "a block late", "tile", "(tile + 1) * TILE // BLOCK_SIZE, mask", "tile * TILE // BLOCK_SIZE, mask", attend
    ),
    Mutation("sum before rounding", "tile", "rounded.to(tl.float32), 1", "weights * 1.01, 1", attend),
    Mutation(
        "split forgets a tile",
        "decode_plan",
        "(piece + 1) * tiles // pieces",
        "(piece + 1) * (tiles - 1) // pieces",
        plan,
    ),
    Mutation("split ignores the window", "decode_plan", "tl.maximum(length - WINDOW, 0) // TILE", "length * 0", plan),
    Mutation(
        "combine forgets an item",
        "decode_attention",
        "item < last,",
        "item < tl.maximum(last - 1, first + 1),",
        plan,
    ),
    Mutation("values not scaled", "decode_attention", "out * value_scale", "out", fp8),
    Mutation("norm without 1 +", "pointwise", "(1.0 + weight)", "weight", norm),
    Mutation("eps outside", "pointwise", "tl.sum(x * x, 0) / width + eps", "tl.sum(x * x, 0) / (width + 1)", norm),
    Mutation(
        "norm of the unrounded sum",
        "pointwise",
        "stream = tl.where(there, rounded.to(tl.float32), 0.0)",
        "stream = tl.where(there, before, 0.0)",
        norm,
    ),
    Mutation(
        "rotates neighbours' signs",
        "pointwise",
        "first * cosine - second * sine",
        "first * cosine + second * sine",
        rotate,
    ),
    Mutation("padding is written", "pointwise", "if slot >= 0:", "if slot >= -1:", rotate),
    Mutation("gelu without the cube", "pointwise", "0.044715 * x * x * x", "0.0 * x", activate),
    Mutation("gate and up exchanged", "pointwise", "gelu_tanh(gate) * up", "gelu_tanh(up) * gate", activate),
    Mutation("nibbles exchanged", "linear", "(both & 15)", "(both >> 4)", multiply),
    Mutation("nibbles not centred", "linear", "(both >> 4).to(tl.int32) - 8", "(both >> 4).to(tl.int32) - 7", multiply),
    Mutation(
        "bytes for fp8",
        "scores",
        "values.to(tl.float32)",
        "values.to(tl.int8, bitcast=True).to(tl.float32)",
        multiply,
    ),
    Mutation(
        "fp8 without subnormals",
        "scores",
        "values.to(tl.float32)",
        "tl.where(tl.abs(values.to(tl.float32)) < 0.015625, 0.0, values.to(tl.float32))",
        multiply,
    ),
    Mutation("fp8 up to 256", "scores", "values.to(tl.float32)", "tl.minimum(values.to(tl.float32), 256.0)", multiply),
    Mutation("a row's scale left out", "linear", "if HAS_SCALE:", "if not HAS_SCALE:", multiply),
    Mutation(
        "a split left out", "linear", "for split in range(SPLITS):", "for split in range(1, SPLITS + 1):", multiply
    ),
    Mutation("final cap left out", "linear", "if CAP > 0:", "if CAP > 1000:", multiply),
    Mutation("top_k keeps one more", "sampling", "limit.to(tl.int64)", "limit.to(tl.int64) + 1", draw),
    Mutation("all equals stay", "sampling", "<= allowed)", "<= vocab_size)", draw),
    Mutation("another number", "sampling", "number >> 11", "number >> 12", draw),
    Mutation("tokens not counted from a rank's first", "sampling", "first_token + first)", "first)", draw_among_ranks),
    Mutation(
        "each rank names the likeliest", "sampling", "tl.where(first_chunk == 0, best, 0)", "best", draw_among_ranks
    ),
    Mutation("a rank looks beyond its chunks", "sampling", " | (own >= num_own)", "", draw_among_ranks),
    Mutation(
        "a token's place among all chunks", "sampling", "first_token + own * CHUNK", "chosen * CHUNK", draw_among_ranks
    ),
    Mutation(
        "all chunks taken for its own", "sampling", "token = own * CHUNK", "token = chosen * CHUNK", draw_among_ranks
    ),
    Mutation("wrong heads sent", "transfer", "first_group + group)[:, None] * WIDTH", "group)[:, None] * WIDTH", move),
)


def mutated(monkeypatch: pytest.MonkeyPatch, directory: Path, mutation: Mutation) -> None:
    """The launchers run kernels from a copy of their sources, one of them changed."""
    package = gemline_kernels.gpu.device
    copied = Path(shutil.copytree(package.__path__[0], directory / "device"))
    source = copied / f"{mutation.file}.py"
    text = source.read_text()
    assert mutation.before in text, f"{mutation.name}: {source.name} has changed"
    source.write_text(text.replace(mutation.before, mutation.after))
    monkeypatch.setattr(package, "__path__", [str(copied)])
    for name in [name for name in sys.modules if name.startswith(f"{package.__name__}.")]:
        monkeypatch.delitem(sys.modules, name)
    for holder in (*LAUNCHERS, test_pointwise):
        for name, held in vars(holder).copy().items():
            if isinstance(held, ModuleType) and held.__name__.startswith(f"{package.__name__}."):
                monkeypatch.setattr(holder, name, importlib.import_module(held.__name__))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_tests_find(mutation: Mutation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mutated(monkeypatch, tmp_path, mutation)
    assert not passes(mutation.battery)


def histograms_not_added(self: Chunks, x: torch.Tensor) -> None:
    if self.ranks is not None and x.dtype != torch.int64:
        self.ranks.sum_(x)


def ranks_in_another_order(self: Chunks, own_XBC: torch.Tensor) -> torch.Tensor:
    assert self.ranks is not None
    return self.ranks.gather(own_XBC).flip(0).permute(1, 2, 0, 3).flatten(2).contiguous()


@pytest.mark.parametrize(("name", "bug"), [("sum_", histograms_not_added), ("all_of", ranks_in_another_order)])
def test_the_tests_find_what_ranks_do_wrong(name: str, bug: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Chunks, name, bug)
    assert not passes(draw_among_ranks)


def passes(battery: Battery) -> bool:
    """In a process of its own: a kernel with a bug may read anywhere, and the interpreter stops none."""
    child = os.fork()
    if child == 0:
        try:
            battery()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("battery", [attend, plan, fp8, norm, rotate, activate, multiply, draw, draw_among_ranks, move])
def test_without_a_bug_the_same_tests_pass(battery: Battery) -> None:
    assert passes(battery)
