"""Every kernel compiles for an H100 without a GPU, fits it, and takes no more of it than the committed table says.

The table is for one version of Triton; `python tests/compiled/table.py` makes it anew.
"""

import json
from pathlib import Path

import pytest
import triton
from compiled.hopper import MOST_SHARED_BYTES, Variant, compile_variant
from compiled.variants import variants

TABLE = json.loads(Path(__file__).with_name("table.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize("variant", variants(), ids=lambda variant: variant.name)
def test_it_takes_no_more_than_it_did(variant: Variant) -> None:
    taken = compile_variant(variant)
    assert taken.shared_bytes <= MOST_SHARED_BYTES
    if triton.__version__ != TABLE["triton"]:
        pytest.skip(f"the table is for triton {TABLE['triton']}, not {triton.__version__}")
    before = TABLE["kernels"][variant.name]
    assert taken.spills <= before["spills"]
    assert taken.registers <= before["registers"]
    assert taken.shared_bytes <= before["shared_bytes"]
    assert taken.programs_per_processor >= before["programs_per_processor"]
    assert (taken.tensor_core_instructions > 0) is (before["tensor_core_instructions"] > 0)


def test_the_table_has_every_kernel_once() -> None:
    assert sorted(TABLE["kernels"]) == sorted(variant.name for variant in variants())


def test_what_serves_the_published_models_spills_nothing() -> None:
    assert [name for name, taken in TABLE["kernels"].items() if taken["spills"]] == []
