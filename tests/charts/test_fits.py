"""A model that does not fit its GPUs is refused by the templates, by the numbers of `gemline plan`, with what would."""

import itertools
import json
import random
import re
from typing import Any, Literal

import pytest
import yaml
from helm_python import HelmRenderError
from support.chart import CHART, changed, maker, manifests
from typer.testing import CliRunner

from gemline.cli.main import app
from gemline.engine.footprint import CacheForm, Footprint, WeightForm
from gemline.sizing.capacity import capacity
from gemline.sizing.gpus import GPUS
from gemline.sizing.models import PUBLISHED

VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
QUANTIZED: dict[str, WeightForm] = {"fp8": "fp8", "int8": "int8", "int4": "int4"}  # others are stored as computed with
CASES = list(
    itertools.product(
        PUBLISHED,
        VALUES["gpus"],
        ("none", *QUANTIZED),
        ("auto", "bfloat16", "float32"),
        maker.DEGREES,
        ("auto", "fp8"),
    )
)


def refused(**changes: Any) -> str:
    with pytest.raises(HelmRenderError) as error:
        maker.render(changed("h100-27b-fp8", **changes))
    return str(error.value)


@pytest.mark.parametrize("case", random.Random(7).sample(CASES, 24), ids=lambda case: " ".join(map(str, case)))
def test_the_template_counts_as_the_plan_does(case: tuple[str, str, str, str, int, str]) -> None:
    size, gpu, quantization, dtype, degree, kv = case
    own: Literal["f32", "bf16"] = "f32" if dtype == "float32" else "bf16"
    cache: CacheForm = "fp8" if kv == "fp8" else own
    shard = Footprint(PUBLISHED[size], QUANTIZED.get(quantization, own), cache, degree)
    room = capacity(shard, GPUS[gpu])
    number = room.num_sequences(shard, maker.CONTEXT)
    message = refused(
        models__0__size=size,
        models__0__gpu=gpu,
        models__0__quantization=quantization,
        models__0__dtype=dtype,
        models__0__tensorParallel=degree,
        models__0__kvCacheDtype=kv,
        models__0__minSequences=number + 1,
    )
    assert f"takes {room.weight_bytes / 2**30:.1f} GiB of weights on each of {degree} x {gpu}," in message
    assert f"which has {GPUS[gpu].memory_bytes / 2**30:.1f} GiB" in message
    assert f"leaves room for {number} sequences of 8192 tokens" in message
    assert f"minSequences asks for {number + 1}" in message


def test_room_for_too_few_sequences_is_refused_with_what_would_do() -> None:
    message = refused(models__0__quantization="none")
    assert "27b with dtype bfloat16 and quantization none takes 50.7 GiB of weights on each of 1 x h100" in message
    assert "which has 79.6 GiB" in message
    assert "leaves room for 11 sequences of 8192 tokens, 2.2 GiB each, and minSequences asks for 20" in message
    for enough in ("none on 2 x h100 (47)", "fp8 on 1 x h100 (23)", "int4 on 1 x h100 (28)", "none on 1 x h200 (39)"):
        assert enough in message
    assert "none on 1 x h100" not in message


def test_weights_that_do_not_fit_are_refused_without_a_word_of_sequences_in_the_values() -> None:
    wide = {"models__0__quantization": "none", "models__0__dtype": "float32", "models__0__minSequences": ...}
    message = refused(**wide)
    assert "takes 101.4 GiB of weights on each of 1 x h100, which has 79.6 GiB" in message
    assert "room for 0 sequences" in message
    assert "none on 2 x h100 (" in message
    assert "none on 1 x h200 (8)" in message
    assert "fp8 on 1 x h100" in message


def test_a_gpu_of_ones_own_is_held_to_its_memory() -> None:
    slice_ = {"memoryGiB": 39.5, "nodeSelector": {"gpu": "slice"}, "tolerations": []}
    values = {"gpus__slice": slice_, "models__0__gpu": "slice", "models__0__minSequences": ...}
    message = refused(**values, models__0__quantization="none")
    assert "takes 50.7 GiB of weights on each of 1 x slice, which has 39.5 GiB" in message
    assert "int8 on 1 x slice" in message
    service = manifests(changed("h100-27b-fp8", **values))
    assert any("slice" in yaml.safe_dump(manifest) for manifest in service)


def test_what_would_do_is_nothing_where_nothing_does() -> None:
    message = refused(models__0__minSequences=10**6)
    assert message.rstrip().endswith("Enough have: none of these GPUs")


def test_what_fits_is_taken() -> None:
    assert manifests(changed("h100-27b-fp8", models__0__quantization="none", models__0__gpu="h200"))
    assert manifests(changed("h100-27b-fp8", models__0__minSequences=40, models__0__kvCacheDtype="fp8"))


def test_the_table_in_the_chart_is_what_the_arithmetic_gives() -> None:
    assert json.loads((CHART / "files" / "sizes.json").read_text()) == maker.sizes_table()


def test_the_charts_gpus_have_what_the_plan_says_they_have() -> None:
    for name, gpu in VALUES["gpus"].items():
        assert int(gpu["memoryGiB"] * 2**30) == GPUS[name].memory_bytes


def test_the_command_says_the_same() -> None:
    told = CliRunner().invoke(app(), ["plan", "--model", "27b", "--gpu", "h100", "--json"])
    assert json.loads(told.stdout)["num_sequences"] == 11
    found = re.search(r"room for (\d+) sequences", refused(models__0__quantization="none"))
    assert found is not None
    assert int(found[1]) == 11
