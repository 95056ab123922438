"""An engine in its thread, as a worker hosts it: calls from the event loop, model card, metrics. Knows no wire."""

import asyncio
import contextlib
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from gemline.cluster.records import ModelCard
from gemline.engine.engine import Engine
from gemline.engine.events import StepResult
from gemline.engine.loop import EngineThread
from gemline.engine.options import EngineOptions
from gemline.engine_metrics import EngineMetrics
from gemline.errors import CheckpointError, InternalError
from gemline.telemetry import Telemetry

T = TypeVar("T")

_STALLED_S = 120.0  # longer than any honest step
_ITEM_BYTES = {"float32": 4, "bfloat16": 2}


class EngineHost:
    """Used from one event loop; `on_step` hears there of every step, in order. `load` gives (running, waiting)."""

    def __init__(
        self,
        model_dir: Path,
        options: EngineOptions,
        on_step: Callable[[StepResult], None],
        load: Callable[[], tuple[int, int]],
    ) -> None:
        self.options = options
        self._model_dir = model_dir
        self._on_step = on_step
        self._load = load
        self._engine: Engine | None = None
        self._metrics: EngineMetrics | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self.thread = EngineThread(partial(Engine.load, model_dir, options), self._stepped, options.num_threads)

    async def start(self, telemetry: Telemetry) -> None:
        """Loads the model; returns when it is ready. Raises the ConfigurationError that says why it cannot be."""
        self._event_loop = asyncio.get_running_loop()
        self.thread.start()
        self._engine = await self.thread.ready()
        self._metrics = EngineMetrics(telemetry, self._engine, self._load)

    @property
    def engine(self) -> Engine:
        """For its constants: config, options, revision. Everything else goes through `call`."""
        if self._engine is None:
            raise InternalError("the engine is not started")
        return self._engine

    @property
    def backend(self) -> str:
        """What the engine computes with."""
        report = self.engine.report
        return "" if report is None else report.backend

    @property
    def token_bytes(self) -> int:
        """Size of one position's keys and values in one layer."""
        config = self.engine.config
        return 2 * config.num_key_value_heads * config.head_dim * _ITEM_BYTES[self.engine.options.dtype]

    def needed(self, num_tokens: int) -> list[range]:
        """For each layer, the positions before `num_tokens` that the next token reads."""
        return [range(*positions) for positions in self.engine.kv_ranges(num_tokens)]

    def card(self, model_id: str) -> ModelCard:
        """What others need to know of the model. Raises CheckpointError when it has no tokenizer."""
        config = self.engine.config
        return ModelCard(
            model_id=model_id,
            revision=self.engine.revision,
            context_length=config.max_position_embeddings,
            vocab_size=config.vocab_size,
            stop_token_ids=config.stop_token_ids,
            tokenizer_sha256=_sha256(self._model_dir / "tokenizer.json"),
            dtype=self.engine.options.dtype,
            quantization=self.engine.options.quantization,
        )

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Runs the function in the engine's thread, between two steps."""
        return await asyncio.wrap_future(self.thread.call(function))

    def post(self, callback: Callable[[], None]) -> None:
        """From the engine's thread: runs the callback on the event loop, in order with the steps."""
        if self._event_loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended, and with it everybody who listened
                self._event_loop.call_soon_threadsafe(callback)

    def check_health(self) -> None:
        """Raises InternalError when the engine is dead or stuck."""
        if not self.thread.is_alive:
            raise InternalError("the engine has stopped")
        if (age_s := self.thread.last_step_age_s) > _STALLED_S:
            raise InternalError(f"the engine's step has been going on for {age_s:.0f} s, over {_STALLED_S:.0f} s")

    async def stop(self) -> None:
        """Ends the thread; what it was doing is dropped."""
        await asyncio.to_thread(self.thread.stop)

    def _stepped(self, result: StepResult) -> None:
        self.post(partial(self._deliver, result))

    def _deliver(self, result: StepResult) -> None:
        self._on_step(result)
        if self._metrics is not None:
            self._metrics.record(result)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
