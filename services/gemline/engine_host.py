"""An engine in its thread, as a worker hosts it: calls from the event loop, model card, metrics. Knows no wire."""

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import torch

from gemline.cluster.records import ModelCard
from gemline.cores import num_cores
from gemline.engine.blocks import BlockCounts
from gemline.engine.config import LayerKind
from gemline.engine.engine import Engine
from gemline.engine.events import StepResult
from gemline.engine.handover import Handover
from gemline.engine.loop import EngineThread
from gemline.engine.options import EngineOptions
from gemline.engine.requests import EngineRequest
from gemline.engine_metrics import EngineMetrics
from gemline.errors import CheckpointError, InternalError
from gemline.grammar.grammars import Grammars
from gemline.internal.v1.prefill_pb2 import KvLayout
from gemline.rank_group import Starter, load_engine, shared_out
from gemline.rank_process import ChildProcesses
from gemline.signals import Busyness, Recent, Signals
from gemline.telemetry import Telemetry
from gemline.text.tokenizer import Tokenizer
from gemline.transfer.connection import run_long

T = TypeVar("T")

_STALLED_S = 120.0  # longer than any honest step
# An engine answers between two steps: for one that is in a long step, what it said last holds.
_SIGNALS_TIMEOUT_S = 0.5
# Threads that move keys and values beside the engine: one frame's checksum is not to hold up the next one's copy.
_NUM_MOVERS = max(2, num_cores() // 8)


class KvMover(Protocol):
    """What moves keys and values: all that a transfer needs of an engine's host."""

    @property
    def movers(self) -> Executor:
        """Threads for what is long and no step."""

    async def hand_over(self, num_bytes: int, move: Callable[[Handover], T]) -> T:
        """Copies so many bytes into or out of the cache."""


class EngineHost:
    """Used from one event loop; `on_step` hears there of every step, in order. `load` gives (running, waiting)."""

    def __init__(
        self,
        model_dir: Path,
        options: EngineOptions,
        on_step: Callable[[StepResult], None],
        load: Callable[[], tuple[int, int]],
        starter: Starter | None = None,
    ) -> None:
        """`starter`: of an engine's other ranks; None: they are child processes."""
        self.options = options
        self._model_dir = model_dir
        self._on_step = on_step
        self._load = load
        self._engine: Engine | None = None
        self._metrics: EngineMetrics | None = None
        self._grammars: Grammars | None = None
        self._event_loop: asyncio.AbstractEventLoop | None = None
        self._busyness = Busyness()
        self._itl = Recent()
        self._streamed_s: float | None = None  # when a step gave tokens to streams that go on; None: the last did not
        self._queue = (0, 0.0)  # tokens of prompts to compute, and tokens a second, as the engine said last
        load_it = partial(load_engine, model_dir, options, starter or ChildProcesses(), self._lose)
        self.thread: EngineThread = EngineThread(load_it, self._stepped, shared_out(options).num_threads)
        # The number of torch's threads belongs to the thread that asks; without a word each would take every core.
        self.movers: Executor = ThreadPoolExecutor(_NUM_MOVERS, "kv", initializer=torch.set_num_threads, initargs=(1,))

    async def start(self, telemetry: Telemetry) -> None:
        """Loads the model; returns when it is ready. Raises the ConfigurationError that says why it cannot be."""
        self._event_loop = asyncio.get_running_loop()
        self.thread.start()
        self._engine = await self.thread.ready()
        self._metrics = EngineMetrics(telemetry, self._engine, self._load)
        config, load = self._engine.config, partial(Tokenizer.load, self._model_dir)
        self._grammars = Grammars(load, config.vocab_size, config.stop_token_ids)

    def _lose(self, reason: str) -> None:
        self.thread.lose(reason)

    @property
    def engine(self) -> Engine:
        """For its constants (config, options, revision, forms); everything else goes through `call` or `hand_over`."""
        if self._engine is None:
            raise InternalError("the engine is not started")
        return self._engine

    @property
    def backend(self) -> str:
        """What the engine computes with."""
        report = self.engine.report
        return "" if report is None else report.backend

    def needed(self, num_tokens: int, start: int = 0) -> list[range]:
        """For each layer, the positions in [start, num_tokens) that the next token reads."""
        return [range(*positions) for positions in self.engine.kv_ranges(num_tokens, start)]

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
            kv_dtype=self.engine.options.cache_dtype,
            window=config.sliding_window,
            global_token_bytes=self.engine.token_bytes(LayerKind.GLOBAL),
            local_token_bytes=self.engine.token_bytes(LayerKind.LOCAL),
        )

    @property
    def layout(self) -> KvLayout:
        """What two workers must agree on before keys and values travel between them."""
        options = self.engine.options
        return KvLayout(
            model_revision=self.engine.revision,
            dtype=options.dtype,
            quantization=options.quantization,
            kv_dtype=options.cache_dtype,
        )

    async def constrained(self, request: EngineRequest) -> EngineRequest:
        """The request with all that its constraint needs; as it is when it has none.

        Raises InvalidRequest when the constraint cannot be read, Overloaded when too many wait to be compiled.
        """
        constraint = request.params.constraint
        if constraint is None:
            return request
        if self._grammars is None:
            raise InternalError("the engine is not started")
        given = request.token_ids[request.num_prompt_tokens :]
        return replace(request, matcher=await self._grammars.matcher(constraint, given))

    async def signals(self, ttft_s: float) -> Signals:
        """How the engine stands, for whoever decides how many there are; `ttft_s` as its worker has measured it."""
        asked = asyncio.wrap_future(self.thread.call(lambda it: (it.num_queued_tokens, it.tokens_per_s or 0.0)))
        with contextlib.suppress(TimeoutError):
            self._queue = await asyncio.wait_for(asked, _SIGNALS_TIMEOUT_S)
        now_s, engine = time.monotonic(), self.engine
        num_running, num_waiting = self._load()
        return Signals(
            num_running=num_running,
            num_waiting=num_waiting,
            max_running=engine.options.max_running,
            queued_tokens=self._queue[0],
            tokens_per_s=self._queue[1],
            busy_share=self._busyness.take(now_s),
            free_kv_bytes=self._kv_bytes(engine.num_free_blocks),
            kv_bytes=self._kv_bytes(engine.num_blocks),
            ttft_s=ttft_s,
            itl_s=self._itl.high(now_s),
        )

    def _kv_bytes(self, blocks: BlockCounts) -> int:
        engine = self.engine
        per_slot = blocks.num_global * engine.token_bytes(LayerKind.GLOBAL)
        return engine.options.block_size * (per_slot + blocks.num_local * engine.token_bytes(LayerKind.LOCAL))

    async def call(self, function: Callable[[Engine], T]) -> T:
        """Runs the function in the engine's thread, between two steps."""
        return await asyncio.wrap_future(self.thread.call(function))

    async def hand_over(self, num_bytes: int, move: Callable[[Handover], T]) -> T:
        """Copies so many bytes of keys and values: beside the engine's steps where that may be, or between two."""
        handover = self.engine.handover
        if handover.is_for_any_thread:
            return await run_long(num_bytes, partial(move, handover), self.movers)
        return await self.call(lambda engine: move(engine.handover))

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
        self.movers.shutdown(wait=False, cancel_futures=True)
        if self._grammars is not None:
            self._grammars.close()
        await asyncio.to_thread(self.thread.stop)

    def _stepped(self, result: StepResult) -> None:
        self.post(partial(self._deliver, result))

    def _deliver(self, result: StepResult) -> None:
        self._on_step(result)
        self._note(result)
        if self._metrics is not None:
            self._metrics.record(result)

    def _note(self, result: StepResult) -> None:
        """What of a step an autoscaler wants to know."""
        self._busyness.add(result.duration_s)
        if not result.tokens:
            return
        if self._streamed_s is not None:
            self._itl.add(result.ended_s - self._streamed_s, result.ended_s)
        goes_on = any(token.finish is None for token in result.tokens)
        self._streamed_s = result.ended_s if goes_on else None


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from None
