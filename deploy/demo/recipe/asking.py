"""Asks a checkpoint many questions at once through gemline's own engine, greedily."""

from collections.abc import Sequence
from pathlib import Path

from gemline.engine.engine import Engine
from gemline.engine.options import EngineOptions, KvDtype, Quantization
from gemline.engine.params import SamplingParams
from gemline.engine.requests import EngineRequest
from gemline.text.tokenizer import Tokenizer


class Asked:
    """A loaded checkpoint. float32 without quantization; bfloat16 computes what most CPUs would serve."""

    def __init__(self, model_dir: Path, dtype: str, quantization: Quantization, kv_dtype: KvDtype = "auto") -> None:
        self.tokenizer = Tokenizer.load(model_dir)
        self._engine = Engine.load(model_dir, EngineOptions(dtype, quantization, kv_dtype, max_waiting=10_000))

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int = 96) -> list[str]:
        """The likeliest answer to each prompt, up to its <end_of_turn>."""
        stops = frozenset(self._engine.config.stop_token_ids)
        params = SamplingParams(max_tokens, temperature=0.0, stop_token_ids=stops)
        for number, ids in enumerate(prompts):
            self._engine.add(EngineRequest(number, tuple(ids), len(ids), params))
        found: list[list[int]] = [[] for _ in prompts]
        while self._engine.has_work:
            for event in self._engine.step().tokens:
                if event.token_id not in stops:
                    found[event.seq_id].append(event.token_id)
        return [self.tokenizer.decode(ids) for ids in found]
