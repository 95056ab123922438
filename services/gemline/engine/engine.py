"""The engine: sequences in, tokens out, one step at a time. Single-threaded; knows no network."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from gemline.engine import handover
from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.events import FailureEvent, Logprobs, PrefillEvent, StepResult, TokenEvent
from gemline.engine.handover import Payload, Positions
from gemline.engine.kv_cache import KvCache, block_bytes
from gemline.engine.loading import LoadReport, load_model
from gemline.engine.memory import free_memory_bytes, max_local_blocks, size_pools
from gemline.engine.options import EngineOptions
from gemline.engine.pacing import Load, Pacer
from gemline.engine.params import SamplingParams
from gemline.engine.prefix_tree import CacheUse
from gemline.engine.requests import EngineRequest, check_request
from gemline.engine.roster import Roster, UnknownSequence
from gemline.engine.runner import Model, Runner
from gemline.engine.sampling import Sampled
from gemline.engine.scheduler import Budget, Chunk, Plan, has_room, schedule
from gemline.engine.sequence import Sequence, Status
from gemline.errors import CheckpointError, InternalError, Overloaded

__all__ = ["Engine", "EngineOptions", "EngineRequest", "UnknownSequence"]

_log = logging.getLogger(__name__)

Event = TokenEvent | PrefillEvent | FailureEvent


class Engine:
    """One model on one cache, and the sequences that share them. All methods are called from one thread.

    A sequence is added and decoded here; or added with `hold`, prefilled, and fetched by another engine; or reserved
    here, imported from another, and decoded.
    """

    def __init__(
        self,
        model: Model,
        config: Gemma2Config,
        options: EngineOptions,
        model_revision: str = "unknown",
        report: LoadReport | None = None,
    ) -> None:
        dtype = _torch_dtype(options)
        per_block = (
            block_bytes(config, kind, options.block_size, dtype) for kind in (LayerKind.GLOBAL, LayerKind.LOCAL)
        )
        self.config = config
        self.options = options
        self.revision = model_revision
        self.report = report
        self.num_blocks = size_pools(options, config, BlockCounts(*per_block), free_memory_bytes())
        self._cache = KvCache(config, *self.num_blocks, options.block_size, dtype)
        self._runner = Runner(model, self._cache)
        self._budget = Budget(options.max_batch_tokens, options.max_running)
        self._pacer = Pacer(options.max_batch_tokens)
        self._roster = Roster(
            self.num_blocks,
            options.block_size,
            config.sliding_window,
            max_local_blocks(options, config),
            model_revision if options.prefix_cache else None,
        )

    @classmethod
    def load(cls, model_dir: Path, options: EngineOptions) -> Self:
        """The engine of a checkpoint; it has computed a token. Raises CheckpointError or ConfigurationError."""
        loaded = load_model(model_dir, options)
        engine = cls(loaded.model, loaded.model.config, loaded.options, loaded.revision, loaded.report)
        if not engine._computes():
            raise CheckpointError(
                f"{model_dir}: these weights give no first token: logits that are not finite, or an error in the log"
            )
        return engine

    @property
    def num_free_blocks(self) -> BlockCounts:
        """Blocks that no sequence has, those that the prefix cache keeps among them."""
        return self._roster.free

    @property
    def num_evictable_blocks(self) -> BlockCounts:
        """Those of them that the prefix cache keeps."""
        return self._roster.evictable

    @property
    def cache_use(self) -> CacheUse:
        """What the prefix cache was good for since the start."""
        return self._roster.cache_use

    @property
    def num_running(self) -> int:
        """Sequences that own blocks: in the batch, held for others, or arriving from others."""
        return self._roster.num_running + self._roster.num_reserved

    @property
    def num_waiting(self) -> int:
        """Sequences in the queue."""
        return self._roster.num_waiting

    @property
    def has_work(self) -> bool:
        """Whether a sequence runs or waits, so that a step may do something."""
        return self._roster.num_running + self._roster.num_waiting > 0

    def step(self) -> StepResult:
        """Moves every sequence that the budget and the blocks allow, and says what came of it."""
        start_s = time.perf_counter()
        load = self._roster.weigh()
        plan = self._plan(load)
        outcome = self._run(plan.chunks)
        events = self._commit(plan, outcome)
        duration_s = time.perf_counter() - start_s
        self._pacer.observe(load.num_decoding, plan.num_tokens - load.num_decoding, duration_s)
        return StepResult(
            tokens=tuple(event for event in events if isinstance(event, TokenEvent)),
            prefills=tuple(event for event in events if isinstance(event, PrefillEvent)),
            failures=tuple(event for event in events if isinstance(event, FailureEvent)),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            num_batch_tokens=plan.num_tokens,
            num_preempted=len(plan.preempted),
            duration_s=duration_s,
        )

    def add(self, request: EngineRequest) -> None:
        """Queues a sequence. Raises InvalidRequest when it could never be served, Overloaded when the queue is full."""
        check_request(request, self.config)
        if self._roster.num_waiting >= self.options.max_waiting:
            raise Overloaded(f"{self._roster.num_waiting} requests wait already, as many as may; try again later")
        self._roster.enqueue(request)

    def cancel(self, seq_id: int) -> None:
        """Forgets a sequence in whatever state and frees its blocks at once; an unknown number is fine.

        What it computed stays in the prefix cache until the room is needed.
        """
        self._roster.remove(seq_id)

    def reserve(self, request: EngineRequest) -> bool:
        """Takes blocks for a prompt whose keys and values will be imported; False when there is no room now.

        No room also while others wait: blocks are given first come, first served. Raises InvalidRequest when the
        request could never be served.
        """
        check_request(request, self.config)
        state = self._roster.state(self._budget)
        if not has_room(state, self._budget, len(request.token_ids)):
            return False
        self._roster.reserve(request)
        return True

    def kv_ranges(self, num_tokens: int) -> tuple[Positions, ...]:
        """For each layer, the positions before `num_tokens` that the token at `num_tokens` reads."""
        return handover.kv_ranges(self.config, num_tokens)

    def export_kv(self, seq_id: int, layer: int, start: int, stop: int) -> memoryview:
        """The keys then the values of those positions, token-major, in the cache's dtype; a copy.

        From a sequence added with `hold`, while it is prefilled and after. Raises UnknownSequence when it is gone,
        IndexError when a position is not computed yet or has left the window.
        """
        sequence = self._roster.by_id.get(seq_id)
        if sequence is None:
            raise UnknownSequence(f"sequence {seq_id} is gone")
        return handover.export_kv(self._cache, sequence, layer, start, stop)

    def import_kv(self, seq_id: int, layer: int, start: int, stop: int, payload: Payload) -> None:
        """Writes what another engine's `export_kv` gave into a reserved sequence.

        Raises UnknownSequence when it is gone, IndexError when a position is not one of its `kv_ranges`,
        InternalError when the payload has another size.
        """
        sequence = self._roster.find(seq_id, Status.IMPORTING)
        handover.import_kv(self._cache, sequence, layer, start, stop, payload)

    def finish_import(
        self, seq_id: int, token_id: int, logprobs: Logprobs | None = None, num_cached: int = 0
    ) -> TokenEvent:
        """Everything has been imported and `token_id` was generated there: the sequence decodes on, or has ended.

        `num_cached` of its tokens were found in the prefix cache there. Raises UnknownSequence when it is gone,
        InternalError when there is no such token.
        """
        sequence = self._roster.find(seq_id, Status.IMPORTING)
        if not 0 <= token_id < self.config.vocab_size:  # would break the batch it is computed in
            raise InternalError(f"token id {token_id} is not in the vocabulary of {self.config.vocab_size}")
        sequence.num_cached = num_cached
        self._roster.computed(sequence, sequence.num_tokens)
        self._roster.start(sequence)
        return self._give(sequence, Sampled(token_id, logprobs))

    def abandon_import(self, seq_id: int) -> None:
        """The import failed: the prompt is queued, at its age, to be prefilled here. Raises UnknownSequence."""
        self._roster.send_back(self._roster.find(seq_id, Status.IMPORTING))

    def fail_all(self) -> tuple[FailureEvent, ...]:
        """Ends every sequence, for when the engine cannot tell any more which of them is at fault."""
        return tuple(self._fail(sequence) for sequence in tuple(self._roster.by_id.values()))

    def _computes(self) -> bool:
        """Whether a token comes of it. Mapped weights are read into memory by this, not by the first request."""
        params = SamplingParams(max_tokens=1, temperature=0.0)
        self.add(EngineRequest(0, (self.config.bos_token_id,), 1, params))
        return not self.step().failures

    def _plan(self, load: Load) -> Plan:
        budget = replace(self._budget, max_batch_tokens=self._pacer.num_tokens(load))
        plan = schedule(self._roster.state(budget), budget)
        self._roster.carry_out(plan)
        return plan

    def _run(self, chunks: tuple[Chunk, ...]) -> dict[int, Sampled | None]:
        """A token for each sequence that is due one; None for each that failed. A batch that breaks is taken apart."""
        try:
            return self._runner.run(chunks, self._roster.by_id)
        except Exception:
            _log.exception("a batch of %d sequences failed", len(chunks))
        if len(chunks) == 1:
            return {chunks[0].seq_id: None}
        return {seq_id: token for chunk in chunks for seq_id, token in self._run((chunk,)).items()}

    def _commit(self, plan: Plan, outcome: dict[int, Sampled | None]) -> list[Event]:
        events: list[Event] = []
        for chunk in plan.chunks:
            sequence = self._roster.by_id[chunk.seq_id]
            if chunk.seq_id not in outcome:
                events += self._advance(sequence, chunk.stop)
            elif (sampled := outcome[chunk.seq_id]) is None:
                events.append(self._fail(sequence))
            else:
                events += self._advance(sequence, chunk.stop)
                events.append(self._give(sequence, sampled))
        return events

    def _advance(self, sequence: Sequence, num_computed: int) -> list[Event]:
        self._roster.computed(sequence, num_computed)
        return [PrefillEvent(sequence.seq_id, num_computed)] if sequence.hold else []

    def _give(self, sequence: Sequence, sampled: Sampled) -> TokenEvent:
        """One more token; a held sequence keeps its blocks instead, and the token is for whoever fetches it."""
        num_cached = sequence.num_cached if sequence.num_tokens == sequence.num_given else 0
        finish = None
        if sequence.hold:
            self._roster.hold(sequence)
        elif (finish := self._roster.answer(sequence, sampled.token_id)) is not None:
            self._roster.remove(sequence.seq_id)
        return TokenEvent(sequence.seq_id, sampled.token_id, sampled.logprobs, finish, num_cached)

    def _fail(self, sequence: Sequence) -> FailureEvent:
        self._roster.remove(sequence.seq_id, failed=True)
        return FailureEvent(sequence.seq_id, InternalError.code, "this request could not be computed")


def _torch_dtype(options: EngineOptions) -> torch.dtype:
    return torch.float32 if options.dtype == "float32" else torch.bfloat16
