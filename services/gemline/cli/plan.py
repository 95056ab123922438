"""`gemline plan`: whether a model fits GPUs, how many tokens beside it, and the speeds that arithmetic allows."""

import json
from typing import Annotated

import typer


def plan(
    model: Annotated[str, typer.Option(help="2b, 9b, 27b, a published name with one of these, or a folder")],
    gpu: Annotated[str, typer.Option(help="h100, h200, a100-80gb or l4")] = "h100",
    tensor_parallel: Annotated[int, typer.Option("--tensor-parallel", "--tp", help="GPUs that share each layer")] = 1,
    weights: Annotated[str, typer.Option(help="bf16, fp8, int8 or int4")] = "bf16",
    kv: Annotated[str, typer.Option(help="bf16 or fp8: keys and values")] = "bf16",
    context: Annotated[int | None, typer.Option(min=1, help="tokens of a sequence; the model's most")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Size a cluster: floors from data sheets, so a real GPU is slower. Exit code 1 when not one sequence fits."""
    from gemline.engine.footprint import Footprint
    from gemline.sizing.forms import cache_form, weight_form
    from gemline.sizing.gpus import find_gpu
    from gemline.sizing.models import find_model
    from gemline.sizing.report import Report

    config = find_model(model)
    shard = Footprint(config, weight_form(weights), cache_form(kv), tensor_parallel)
    report = Report(model, shard, find_gpu(gpu), context or config.max_position_embeddings)
    print(json.dumps(report.as_dict(), indent=2) if as_json else report.as_text())
    if not report.num_sequences:
        raise typer.Exit(1)
