"""Norms, rotation and the gated activation at the sizes of the published models."""

import pytest
import torch
from interpreted import test_pointwise as cases
from support.published import MODELS, Model

of_models = pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
of_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])


@of_models
@of_dtypes
@pytest.mark.parametrize("num_rows", [1, 64])
def test_norms_agree(model: Model, dtype: torch.dtype, num_rows: int) -> None:
    cases.test_rms_norm_multiplies_by_one_plus_weight(dtype, (num_rows, model.width))
    cases.test_add_norm_adds_the_normed_and_norms_the_rounded_sum(dtype, (num_rows, model.width))


@of_models
@of_dtypes
def test_the_ends_of_a_layer_agree(model: Model, dtype: torch.dtype) -> None:
    cases.test_embed_scales_and_norms_the_rounded_rows(dtype, model.width)
    cases.test_geglu_multiplies_the_activated_gate_by_up(dtype, model.inner)


@of_models
@of_dtypes
def test_rotation_agrees(model: Model, dtype: torch.dtype) -> None:
    sizes = model.num_heads, model.num_groups, model.head_dim
    cases.test_rope_write_rotates_queries_and_keys_and_fills_the_slots(dtype, *sizes)
