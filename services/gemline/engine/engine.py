"""The engine: sequences in, tokens out, one step at a time. Single-threaded; knows no network."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, Self

import torch

from gemline.engine import handover
from gemline.engine.blocks import BlockCounts
from gemline.engine.config import Gemma2Config, LayerKind
from gemline.engine.events import FailureEvent, Logprobs, PrefillEvent, StepResult, TokenEvent
from gemline.engine.group import Model, whole
from gemline.engine.handover import Handover, Payload, Positions
from gemline.engine.kv_cache import DTYPES, block_bytes
from gemline.engine.kv_form import KvForm
from gemline.engine.loading import LoadReport, load_model
from gemline.engine.memory import max_local_blocks
from gemline.engine.options import EngineOptions
from gemline.engine.pacing import Load, Pacer
from gemline.engine.params import SamplingParams
from gemline.engine.part import Part
from gemline.engine.pools import make_cache
from gemline.engine.prefix_tree import CacheUse
from gemline.engine.ranks import Ranks, RanksBroken
from gemline.engine.requests import EngineRequest, check_request
from gemline.engine.roster import Roster, UnknownSequence
from gemline.engine.runner import Outcome, Runner
from gemline.engine.sampling import Sampled
from gemline.engine.scheduler import Budget, Chunk, Plan, has_room, schedule
from gemline.engine.sequence import Sequence, Status
from gemline.errors import CheckpointError, InternalError, InvalidRequest, Overloaded, WorkerLost

__all__ = ["Engine", "EngineOptions", "EngineRequest", "UnknownSequence"]

_log = logging.getLogger(__name__)

Event = TokenEvent | PrefillEvent | FailureEvent


class Reserved(NamedTuple):
    """Blocks for a prompt; its first `num_cached` tokens were found in the prefix cache and need not be imported."""

    num_cached: int


class Outlook(NamedTuple):
    """What a request would meet in an engine."""

    num_cached: int  # of its tokens, in the prefix cache
    num_streams: int  # sequences that decode
    num_queued_tokens: int  # of prompts that were there before and are not computed yet
    tokens_per_s: float | None  # of a prompt, beside those streams; None while nothing is known


class Engine:
    """One model on one cache, and the sequences that share them.

    All methods are called from one thread; `handover` says of itself who may use it.

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
        ranks: Ranks | None = None,
    ) -> None:
        """Among `ranks` this is rank 0, and the model its part; the others `follow`."""
        options = options.for_device(model.device.type)
        self.config = config
        self.options = options
        self.revision = model_revision
        self.report = report
        part = Part(config) if ranks is None else Part(config, ranks.rank, ranks.size)
        self._cache = make_cache(model, part, options, ranks)
        self.num_blocks = self._cache.num_blocks
        all_parts = whole(model, self._cache, part, options.max_running, ranks)
        self._runner = Runner(all_parts.compute, all_parts.rows, options.block_size)
        self._budget = Budget(options.max_batch_tokens, options.max_running)
        self._pacer = Pacer(options.max_batch_tokens)
        self._roster = Roster(
            self.num_blocks,
            options.block_size,
            config.sliding_window,
            max_local_blocks(options, config),
            model_revision if options.prefix_cache else None,
            tenant_share=options.tenant_cache_share,
            looks_ahead=self._runner.looks_ahead,
        )
        self.handover = Handover(all_parts.cache, self._roster)

    @classmethod
    def load(cls, model_dir: Path, options: EngineOptions, ranks: Ranks | None = None) -> Self:
        """The engine of a checkpoint; it has computed a token. Raises CheckpointError or ConfigurationError."""
        loaded = load_model(model_dir, options, ranks=ranks)
        engine = cls(loaded.model, loaded.model.config, loaded.options, loaded.revision, loaded.report, ranks)
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
            ended_s=time.monotonic(),
            residency=self._roster.take_residency(),
            free=self._roster.free,
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
        self.handover.close(seq_id)
        self._roster.remove(seq_id)

    def token_bytes(self, kind: LayerKind) -> int:
        """Keys and values of one position in all layers of that kind."""
        return block_bytes(self.config, kind, 1, DTYPES[self.options.cache_dtype])

    @property
    def num_queued_tokens(self) -> int:
        """Tokens of prompts that are to be computed here."""
        return self._roster.num_queued_tokens

    @property
    def tokens_per_s(self) -> float | None:
        """How fast prompts are computed beside no stream; None while nothing was measured."""
        return self._pacer.tokens_per_s(0)

    def outlook(self, request: EngineRequest) -> Outlook:
        """What the request would meet here if it were added now. Raises InvalidRequest as `add` does."""
        check_request(request, self.config)
        load = self._roster.weigh()
        return Outlook(
            num_cached=self._roster.newcomer(request).num_computed,
            num_streams=load.num_decoding,
            num_queued_tokens=self._roster.num_queued_tokens,
            tokens_per_s=self._pacer.tokens_per_s(load.num_decoding),
        )

    def reserve(self, request: EngineRequest) -> Reserved | None:
        """Takes blocks for a prompt whose keys and values will be imported; None when there is no room now.

        No room also while others wait: blocks are given first come, first served. Raises InvalidRequest when the
        request could never be served.
        """
        check_request(request, self.config)
        state = self._roster.state(self._budget)
        if not has_room(state, self._budget, self._roster.newcomer(request)):
            return None
        reserved = Reserved(self._roster.reserve(request))
        self.handover.open(request.seq_id)
        return reserved

    def kv_ranges(self, num_tokens: int, start: int = 0) -> tuple[Positions, ...]:
        """For each layer, the positions in [start, num_tokens) that the token at `num_tokens` reads."""
        return handover.kv_ranges(self.config, num_tokens, start)

    def kv_form(self, dtype: str = "", heads: range | None = None) -> KvForm:
        """How keys and values leave and come: without a word as the cache has them. Raises as `KvForm.of` does."""
        return KvForm.of(self.config, self.options.cache_dtype, dtype, heads)

    def export_kv(self, seq_id: int, layer: int, start: int, stop: int) -> memoryview:
        """A copy of the keys then the values of those positions, as the cache has them. Raises as `handover` does."""
        payload = memoryview(bytearray((stop - start) * self.kv_form().token_bytes))
        self.handover.export_kv(seq_id, layer, Positions(start, stop), self.kv_form(), payload)
        return payload

    def import_kv(self, seq_id: int, layer: int, start: int, stop: int, payload: Payload) -> None:
        """Writes what `export_kv` of an engine with the same scales gave into a reserved sequence.

        Raises as `handover` does.
        """
        scales = self._cache.scales[layer]
        self.handover.import_kv(seq_id, layer, Positions(start, stop), self.kv_form(), scales, payload)

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
        self.handover.close(seq_id)
        sequence.num_cached = num_cached
        self._roster.computed(sequence, sequence.num_tokens)
        self._roster.start(sequence)
        return self._give(sequence, Sampled(token_id, logprobs))

    def abandon_import(self, seq_id: int) -> None:
        """The import failed: the prompt is queued, at its age, to be prefilled here. Raises UnknownSequence."""
        sequence = self._roster.find(seq_id, Status.IMPORTING)
        self.handover.close(seq_id)
        self._roster.send_back(sequence)

    def end(self) -> None:
        """The last call: other ranks, if there are any, are let go."""
        self._runner.end()

    def fail_all(self, *, is_lost: bool = False) -> tuple[FailureEvent, ...]:
        """Ends every sequence, for when the engine cannot tell any more which of them is at fault.

        `is_lost`: the engine will do nothing any more, and whoever wants to go on has to do so elsewhere.
        """
        code = WorkerLost.code if is_lost else InternalError.code
        return tuple(self._fail(sequence, code) for sequence in tuple(self._roster.by_id.values()))

    def _computes(self) -> bool:
        """Whether a token comes of it. This reads mapped weights and compiles kernels, so that no request has to.

        With steps ahead there are two ways to a token, a prompt's and a row's.
        """
        number = 2 if self._runner.looks_ahead else 1
        params = SamplingParams(max_tokens=number, temperature=0.0)
        self.add(EngineRequest(0, (self.config.bos_token_id,) * number, number, params))
        return not any(self.step().failures for _ in range(number))

    def _plan(self, load: Load) -> Plan:
        budget = replace(self._budget, max_batch_tokens=self._pacer.num_tokens(load))
        plan = schedule(self._roster.state(budget), budget)
        self._roster.carry_out(plan)
        return plan

    def _run(self, chunks: tuple[Chunk, ...]) -> Outcome:
        """What came of them; a batch that breaks is taken apart, and whoever breaks alone has failed."""
        try:
            return self._runner.run(chunks, self._roster.by_id)
        except (torch.AcceleratorError, RanksBroken):
            raise  # the device, or another rank, is lost to this process, and with it every sequence
        except Exception:
            _log.exception("a batch of %d sequences failed", len(chunks))
        self._runner.reset()
        if len(chunks) == 1:
            return Outcome({chunks[0].seq_id: None}, frozenset())
        apart = [self._run((chunk,)) for chunk in chunks]
        return Outcome({seq_id: token for one in apart for seq_id, token in one.sampled.items()}, frozenset())

    def _commit(self, plan: Plan, outcome: Outcome) -> list[Event]:
        events: list[Event] = []
        for chunk in plan.chunks:
            sequence = self._roster.by_id[chunk.seq_id]
            if chunk.seq_id in outcome.queued:
                continue
            if chunk.seq_id not in outcome.sampled:
                events += self._advance(sequence, chunk.stop)
            elif (sampled := outcome.sampled[chunk.seq_id]) is None:
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
        is_first = sequence.num_tokens == sequence.num_given
        found = (sequence.num_cached, sequence.num_resident) if is_first else (0, 0)
        scored = tuple(sequence.prompt_logprobs.values()) if sequence.scores_prompt else ()
        finish = None
        if sequence.hold:
            self._roster.hold(sequence)
        elif (finish := self._roster.answer(sequence, sampled.token_id)) is not None:
            self._roster.remove(sequence.seq_id)
        return TokenEvent(sequence.seq_id, sampled.token_id, sampled.logprobs, finish, *found, scored)

    def _fail(self, sequence: Sequence, code: str = InternalError.code) -> FailureEvent:
        self.handover.close(sequence.seq_id)
        self._roster.remove(sequence.seq_id, failed=True)
        if (matcher := sequence.matcher) is not None and matcher.failure is not None:
            return FailureEvent(sequence.seq_id, InvalidRequest.code, matcher.failure, matcher.param)
        return FailureEvent(sequence.seq_id, code, "this request could not be computed")
