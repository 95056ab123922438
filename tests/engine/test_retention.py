"""Which resume point goes first: by when it is expected back, as far as the past tells."""

from hypothesis import given
from hypothesis import strategies as st

from gemline.engine.retention import Agenda, Memory, ResumePoint


class Sessions:
    """Sessions that come one at a time over room for so many; what is given up is remembered."""

    def __init__(self, num_room: int) -> None:
        self.agenda: Agenda[int] = Agenda(max_memories=1000)
        self.num_room = num_room
        self.points: dict[int, ResumePoint[int]] = {}

    def come(self, session: int) -> bool:
        """Whether it finds what it left."""
        self.agenda.now += 1
        point, memory = self.points.get(session), self.agenda.recall(bytes([session]))
        found = point is not None
        last_used = point.last_used if point else memory.last_used if memory else None
        interval = None if last_used is None else self.agenda.now - last_used
        if interval is not None:
            self.agenda.learn(interval, is_next_turn=True)
        if point is None:
            while len(self.points) >= self.num_room:
                self.give_up()
            point = self.points[session] = ResumePoint(session, self.agenda.now, interval, is_shared=False)
        point.interval = interval
        self.agenda.end_turn()
        self.agenda.expect(point)
        return found

    def give_up(self) -> None:
        point = self.agenda.farthest()
        assert point is not None
        self.agenda.discard(point)
        self.agenda.remember(bytes([point.node]), Memory(point.last_used, is_end=True))
        del self.points[point.node]


def test_while_nothing_ever_came_back_the_oldest_goes_first() -> None:
    sessions = Sessions(3)
    for session in range(6):
        sessions.come(session)
    assert sorted(sessions.points) == [3, 4, 5]


def test_sessions_in_turn_over_too_little_room_keep_hitting_where_lru_would_never() -> None:
    sessions = Sessions(6)
    rounds = [[sessions.come(session) for session in range(10)] for _ in range(5)]
    assert sum(rounds[0]) == 0
    assert all(sum(hits) >= 5 for hits in rounds[2:])


def test_sessions_that_ended_make_room() -> None:
    sessions = Sessions(4)
    for _ in range(5):
        for session in range(4):
            sessions.come(session)
    hits = [[sessions.come(session) for session in range(10, 14)] for _ in range(6)]
    assert sum(map(sum, hits[-2:])) == 8
    assert sorted(sessions.points) == [10, 11, 12, 13]


def test_a_flood_that_never_comes_back_does_not_wash_out_those_that_do() -> None:
    sessions, hits = Sessions(8), list[bool]()
    for turn in range(12):
        for session in range(3):
            hits.append(sessions.come(session))
            for one in range(10):
                sessions.come(10 + (turn * 30 + session * 10 + one) % 240)
    assert sum(hits[-15:]) >= 13


@given(st.lists(st.tuples(st.sampled_from(["expect", "discard", "later"]), st.integers(0, 7)), max_size=80))
def test_the_farthest_is_found_whatever_changed_before(moves: list[tuple[str, int]]) -> None:
    agenda: Agenda[int] = Agenda(max_memories=1)
    points = [ResumePoint(n, 0, interval=5 * n, is_shared=False) for n in range(8)]
    for move, number in moves:
        point = points[number]
        if move == "later":
            agenda.now += number
        elif move == "expect":
            agenda.expect(point)
        elif point.entry:
            agenda.discard(point)
        live = [point for point in points if point.entry]
        assert len(agenda) == len(live)
        farthest = agenda.farthest()
        assert (farthest is None) == (not live)
        distances = [max(p.due - agenda.now, 2 * (agenda.now - p.due)) for p in live]
        if farthest is not None:
            assert max(farthest.due - agenda.now, 2 * (agenda.now - farthest.due)) == max(distances)


def test_entries_of_the_past_do_not_pile_up() -> None:
    agenda: Agenda[int] = Agenda(max_memories=1)
    point = ResumePoint(1, 0, interval=3, is_shared=False)
    for _ in range(1000):
        agenda.now += 1
        agenda.expect(point)
    assert len(agenda._earliest) + len(agenda._latest) < 200


def test_only_so_much_is_remembered_the_newest() -> None:
    agenda: Agenda[int] = Agenda(max_memories=2)
    for number in range(4):
        agenda.remember(bytes([number]), Memory(number, is_end=False))
    assert [agenda.recall(bytes([number])) is not None for number in range(4)] == [False, False, True, True]
