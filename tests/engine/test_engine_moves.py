"""Any order of submitting, cancelling, holding, importing and stepping, by several tenants whose prompts begin alike:
no block is lost, none is shared by two tenants, no token is wrong."""

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from support.block_account import check_blocks, num_common, told

from gemline.engine.engine import Engine, EngineOptions, EngineRequest
from gemline.engine.params import SamplingParams
from gemline.engine.toy import ToyModel, toy_answer, toy_engine

# Prompts of few words, and of many that begin as another one does: the prefix cache finds some of each.
ROOTS = [list(range(40, 74)), [7] * 34, [*range(40, 56), *range(18)]]
PROMPTS = st.one_of(
    st.builds(
        lambda root, length, more: ROOTS[root][:length] + more,
        st.integers(0, 2),
        st.integers(1, 30),
        st.lists(st.integers(0, 96), max_size=4),
    ),
    st.lists(st.integers(0, 96), min_size=1, max_size=34),
)
SALTS = st.sampled_from([b"", b"tenant 1", b"tenant 2"])
PUBLIC = ROOTS[0][:14]
LENGTHS = st.integers(1, 30)


class EngineMoves(RuleBasedStateMachine):
    """A toy engine with few blocks, and a donor with many, from which prompts are imported."""

    live = Bundle("live")
    held = Bundle("held")
    importing = Bundle("importing")

    @initialize(
        block_size=st.integers(1, 7),
        num_spare=st.integers(0, 40),
        max_batch_tokens=st.integers(1, 40),
        max_running=st.integers(1, 4),
        prefix_cache=st.sampled_from([True, True, True, False]),
        looks_ahead=st.booleans(),
    )
    def begin(
        self,
        block_size: int,
        num_spare: int,
        max_batch_tokens: int,
        max_running: int,
        prefix_cache: bool,
        looks_ahead: bool,
    ) -> None:
        options = EngineOptions(
            num_kv_blocks=-(-64 // block_size) + num_spare,
            block_size=block_size,
            max_batch_tokens=max_batch_tokens,
            max_running=max_running,
            max_waiting=100,
            prefix_cache=prefix_cache,
        )
        self.engine = toy_engine(options, ToyModel(looks_ahead=looks_ahead))
        self.donor = toy_engine(EngineOptions(num_kv_blocks=64, block_size=4, max_batch_tokens=64))
        self.num_sequences = 0
        self.num_reserved_found: dict[int, int] = {}
        self.resident: set[bytes] = set()  # as a router would know it
        self.requests: dict[int, EngineRequest] = {}
        self.answers: dict[int, list[int]] = {}
        self.expected: dict[int, list[int]] = {}

    def new_request(self, prompt: list[int], length: int, salt: bytes, hold: bool = False) -> EngineRequest:
        self.num_sequences += 1
        seq_id = self.num_sequences
        self.answers[seq_id], self.expected[seq_id] = [], toy_answer(prompt, 1 if hold else length)
        num_logprobs = 0 if seq_id % 4 == 0 else None  # which rows on a device do not give
        params = SamplingParams(max_tokens=length, temperature=0.0, num_logprobs=num_logprobs)
        request = self.requests[seq_id] = EngineRequest(
            seq_id,
            tuple(prompt),
            len(prompt),
            params,
            hold,
            salt,
            num_public_tokens=num_common(prompt, PUBLIC),
        )
        return request

    @rule(target=live, prompt=PROMPTS, length=LENGTHS, salt=SALTS)
    def submit(self, prompt: list[int], length: int, salt: bytes) -> int:
        request = self.new_request(prompt, length, salt)
        self.engine.add(request)
        return request.seq_id

    @rule(target=live, seq_id=live, more=st.lists(st.integers(0, 96), min_size=1, max_size=6), length=LENGTHS)
    def next_turn(self, seq_id: int, more: list[int], length: int) -> object:
        """Goes on from what another request asked and was answered, be it finished or not."""
        if seq_id not in self.answers:
            return multiple()
        earlier = self.requests[seq_id]
        prompt = [*earlier.token_ids, *self.answers[seq_id], *more]
        if len(prompt) + length > 64:
            return multiple()
        request = self.new_request(prompt, length, earlier.cache_salt)
        self.engine.add(request)
        return request.seq_id

    @rule(target=held, prompt=PROMPTS, salt=SALTS)
    def hold(self, prompt: list[int], salt: bytes) -> int:
        request = self.new_request(prompt, 9, salt, hold=True)
        self.engine.add(request)
        return request.seq_id

    @rule(target=importing, prompt=PROMPTS, length=LENGTHS, salt=SALTS)
    def reserve(self, prompt: list[int], length: int, salt: bytes) -> object:
        request = self.new_request(prompt, length, salt)
        if (reserved := self.engine.reserve(request)) is not None:
            self.num_reserved_found[request.seq_id] = reserved.num_cached
            return request
        self.forget(request.seq_id)
        return multiple()

    @rule(target=live, request=consumes(importing))
    def import_(self, request: EngineRequest) -> object:
        if request.seq_id not in self.answers:
            return multiple()
        self.donor.add(replace(request, hold=True))
        (first,) = self.donor.step().tokens
        found = self.num_reserved_found[request.seq_id]
        for layer, (start, stop) in enumerate(self.donor.kv_ranges(len(request.token_ids), found)):
            payload = self.donor.export_kv(request.seq_id, layer, start, stop)
            self.engine.import_kv(request.seq_id, layer, start, stop, payload)
        self.donor.cancel(request.seq_id)
        self.answers[request.seq_id].append(self.engine.finish_import(request.seq_id, first.token_id).token_id)
        return request.seq_id

    @rule(target=live, request=consumes(importing))
    def abandon(self, request: EngineRequest) -> object:
        if request.seq_id not in self.answers:
            return multiple()
        self.engine.abandon_import(request.seq_id)
        return request.seq_id

    @rule(seq_id=consumes(live))
    def cancel(self, seq_id: int) -> None:
        self.forget(seq_id)

    @rule(seq_id=consumes(held))
    def release(self, seq_id: int) -> None:
        self.forget(seq_id)

    @rule(request=consumes(importing))
    def cancel_import(self, request: EngineRequest) -> None:
        self.forget(request.seq_id)

    @rule(num_steps=st.integers(1, 12))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            result = self.engine.step()
            assert result.num_batch_tokens <= self.engine.options.max_batch_tokens
            assert not result.failures
            self.resident = (self.resident - set(result.residency.removed)) | set(result.residency.added)
            assert self.resident == told(self.engine._roster)
            for event in result.tokens:
                self.answers[event.seq_id].append(event.token_id)

    @invariant()
    def every_block_is_free_or_accounted_for(self) -> None:
        if hasattr(self, "engine"):
            check_blocks(self.engine._roster)

    @invariant()
    def every_token_is_right(self) -> None:
        for seq_id, answer in getattr(self, "answers", {}).items():
            assert answer == self.expected[seq_id][: len(answer)]

    def forget(self, seq_id: int) -> None:
        self.engine.cancel(seq_id)
        self.answers.pop(seq_id, None)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            finish(self)


def finish(moves: EngineMoves) -> None:
    """Whoever others wait for is let go of; then everybody else ends, and nothing is left."""
    for sequence in tuple(moves.engine._roster.by_id.values()):
        if sequence.hold or sequence.status.name == "IMPORTING":
            moves.forget(sequence.seq_id)
    num_tokens = sum(map(len, moves.expected.values())) + 64 * len(moves.expected)
    drain(moves.engine, moves, max_steps=10 * num_tokens + 10)
    assert moves.engine.num_free_blocks == moves.engine.num_blocks
    for seq_id, answer in moves.answers.items():
        assert answer == moves.expected[seq_id]


def drain(engine: Engine, moves: EngineMoves, max_steps: int) -> None:
    for _ in range(max_steps):
        if not engine.has_work:
            return
        moves.step(1)
    raise AssertionError("somebody starves")


TestEngineMoves = EngineMoves.TestCase
TestEngineMoves.settings = settings(max_examples=60, stateful_step_count=30)
