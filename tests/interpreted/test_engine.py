"""The whole engine on the Triton backend, interpreted: the tokens that the reference gives, queued ahead or not."""

from pathlib import Path

import pytest
import torch

from gemline.engine.config import Gemma2Config
from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.loading import load_model
from gemline.engine.model import Gemma2Model
from gemline.engine.options import Quantization
from gemline.engine.params import SamplingParams
from gemline.engine.weights import load_weights
from gemline.errors import ConfigurationError
from gemline_kernels import reference
from gemline_kernels.backend import Backend
from gemline_kernels.gpu import backend as triton_backend

OPTIONS = EngineOptions(num_kv_blocks=100, max_running=5, dtype="float32")


def engine_on(ops: Backend, checkpoint: Path) -> Engine:
    loaded = load_model(checkpoint, OPTIONS, ops)
    return Engine(loaded.model, loaded.model.config, loaded.options, loaded.revision, loaded.report)


def requests() -> list[EngineRequest]:
    """Greedy and drawn, cut off and not; one that wants logprobs and one with penalties, which rows do not give."""
    random = torch.Generator().manual_seed(0)
    params = (
        SamplingParams(6, temperature=0.0),
        SamplingParams(4, temperature=0.8, seed=2**63 + 5),
        SamplingParams(5, temperature=1.3, top_k=20, top_p=0.9, seed=3),
        SamplingParams(3, temperature=0.0, num_logprobs=2),
        SamplingParams(3, temperature=0.7, repetition_penalty=1.2, min_p=0.01, seed=8),
    )
    lengths = (40, 1, 17, 5, 20)  # the window is 16
    return [
        EngineRequest(seq_id, (2, *torch.randint(217, 1024, (length - 1,), generator=random).tolist()), length, chosen)
        for seq_id, (length, chosen) in enumerate(zip(lengths, params, strict=True))
    ]


def answers(engine: Engine) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {request.seq_id: [] for request in requests()}
    for request in requests():
        engine.add(request)
        for event in engine.step().tokens:  # each begins while those before it are at work
            found[event.seq_id].append(event.token_id)
    while engine.has_work:
        result = engine.step()
        assert not result.failures
        for event in result.tokens:
            found[event.seq_id].append(event.token_id)
    assert engine.num_free_blocks == engine.num_blocks
    return found


def test_the_engine_gives_the_tokens_of_the_reference(tiny_checkpoint: Path) -> None:
    ours = engine_on(triton_backend, tiny_checkpoint)
    assert ours._runner.looks_ahead
    assert answers(ours) == answers(engine_on(reference, tiny_checkpoint))


@pytest.mark.parametrize("quantization", ["int8", "int4"])
def test_quantised_weights_serve(tiny_checkpoint: Path, quantization: Quantization) -> None:
    found = []
    for ops in (triton_backend, reference):
        config = Gemma2Config.load(tiny_checkpoint)
        model = Gemma2Model(config, load_weights(tiny_checkpoint, config), torch.float32, ops, quantization)
        engine = Engine(model, config, OPTIONS)
        engine.add(EngineRequest(1, (2, *range(300, 320)), 21, SamplingParams(4, temperature=0.0)))
        found.append([event.token_id for _ in range(4) for event in engine.step().tokens])
    assert found[0] == found[1]
    assert len(found[0]) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (EngineOptions(block_size=24), "block size 24 is not supported on a GPU; it must be a multiple of 16"),
    ],
)
def test_what_no_kernel_was_written_for_is_refused_at_start(
    tiny_checkpoint: Path, options: EngineOptions, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        load_model(tiny_checkpoint, options, triton_backend)
