"""Load on a server of known answers: what is sent, when, and what becomes of failures."""

import dataclasses

import pytest
from support.openai_server import KEY, ForeignServer

from gemline.bench.http import Origin
from gemline.bench.load import Pace, run
from gemline.bench.measure import summarize
from gemline.bench.openai_stream import Endpoint, Server
from gemline.bench.workloads import make, plan
from gemline.errors import ConfigurationError, ModelNotFound, Unauthenticated, Unavailable


def client(foreign: ForeignServer, endpoint: Endpoint = "completions") -> Server:
    return Server(Origin.parse(foreign.url), KEY, "some-model", endpoint, num_output_tokens=9)


async def test_the_servers_usage_counts_and_every_chunk_has_a_time() -> None:
    with ForeignServer(num_pieces=4, tokens_per_piece=3) as foreign:
        ran = await run(client(foreign), make(plan("random", "12", num_requests=5)), Pace(2))
    summary = summarize(ran.records, ran.duration_s)
    assert (summary.num_ok, summary.prompt_tokens, summary.output_tokens) == (5, 500, 60)
    assert all(len(record.itl_s) == 3 for record in ran.records)
    assert all(len(body["prompt"]) == 12 and body["max_tokens"] == 9 for body in foreign.bodies)
    assert foreign.most_at_once <= 2


async def test_a_pause_of_the_server_is_in_the_gaps() -> None:
    with ForeignServer(num_pieces=3, pause_s=0.05) as foreign:
        ran = await run(client(foreign), make(plan("random", "12", num_requests=1)), Pace(1))
    record = ran.records[0]
    assert record.latency_s - record.ttft_s == pytest.approx(sum(record.itl_s))
    assert sum(record.itl_s) > 0.05


async def test_without_usage_a_chunk_is_a_token_and_that_is_told() -> None:
    with ForeignServer(with_usage=False) as foreign:
        ran = await run(client(foreign), make(plan("random", "12", num_requests=1)), Pace(1))
    assert (ran.records[0].num_prompt_tokens, ran.records[0].num_output_tokens) == (12, 4)
    assert not summarize(ran.records, ran.duration_s).counted_by_server


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
async def test_a_sessions_turns_carry_the_answers_before_them(endpoint: Endpoint) -> None:
    conversations = make(
        plan("session", "5", num_sessions=1, num_turns=3, num_prefix_tokens=8, chat=endpoint == "chat")
    )
    with ForeignServer(num_pieces=2) as foreign:
        await run(client(foreign, endpoint), conversations, Pace(1))
    asks = [ask.text for ask in conversations[0]]
    last = foreign.bodies[-1]
    if endpoint == "chat":
        assert [one["role"] for one in last["messages"]] == ["user", "assistant", "user", "assistant", "user"]
        assert [one["content"] for one in last["messages"]] == [asks[0], "w0 w1 ", asks[1], "w0 w1 ", asks[2]]
    else:
        assert last["prompt"] == f"{asks[0]}w0 w1 \n{asks[1]}w0 w1 \n{asks[2]}"
    assert len(foreign.bodies) == 3


async def test_turns_of_ids_follow_one_another_without_answers() -> None:
    conversations = make(plan("session", "5", num_sessions=1, num_turns=2, num_prefix_tokens=0, as_text=False))
    with ForeignServer() as foreign:
        await run(client(foreign), conversations, Pace(1))
    first, second = conversations[0]
    assert foreign.bodies[1]["prompt"] == [*first.token_ids, *second.token_ids]


async def test_a_failed_request_is_counted_with_its_reason_and_the_others_go_on() -> None:
    with ForeignServer(fail_every=3) as foreign:
        ran = await run(client(foreign), make(plan("random", "12", num_requests=9)), Pace(1))
    assert summarize(ran.records, ran.duration_s).errors == {"HTTP 503: too busy": 3}


async def test_a_session_stops_at_a_failed_turn_and_its_other_turns_count_as_failed() -> None:
    with ForeignServer(fail_every=2) as foreign:
        ran = await run(client(foreign), make(plan("session", "5", num_sessions=1, num_turns=4)), Pace(1))
    assert [record.error is None for record in ran.records] == [True, False, False, False]
    assert len(foreign.bodies) == 2


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"break_off": True}, "closed the connection"),
        ({"garbage": b"{"}, "not as OpenAI's"),
        ({"garbage": b"[1]"}, "not as OpenAI's"),
        ({"garbage": b'{"choices":[3]}'}, "not as OpenAI's"),
        ({"garbage": b'{"choices":[],"usage":{"prompt_tokens":{}}}'}, "not as OpenAI's"),
        ({"garbage": b'{"error":{"message":"the worker died"}}'}, "the worker died"),
        ({"garbage": b"[DONE]"}, "no chunk"),
    ],
)
async def test_a_broken_answer_is_a_failed_request(fault: dict[str, bool | bytes], reason: str) -> None:
    foreign = ForeignServer()
    for name, value in fault.items():
        setattr(foreign, name, value)
    with foreign:
        ran = await run(client(foreign), make(plan("random", "12", num_requests=2)), Pace(2))
    assert all(reason in (record.error or "") for record in ran.records)


async def test_a_request_without_an_end_is_given_up() -> None:
    with ForeignServer(pause_s=0.3) as foreign:
        server = dataclasses.replace(client(foreign), timeout_s=0.1)
        ran = await run(server, make(plan("random", "12", num_requests=1)), Pace(1))
    assert ran.records[0].error == "no end within 0.1 s"


def test_poisson_arrivals_repeat_with_the_seed_and_have_the_rate() -> None:
    starts = Pace(rate=20.0, seed=5).starts_s(4001)
    assert starts == Pace(rate=20.0, seed=5).starts_s(4001)
    assert starts[0] == 0
    assert starts == sorted(starts)
    assert starts[-1] / 4000 == pytest.approx(1 / 20, rel=0.1)


@pytest.mark.parametrize("bad", [{"concurrency": 0}, {"rate": 0.0}, {"rate": -1.0}, {"rate": float("nan")}])
def test_an_impossible_pace_is_refused(bad: dict[str, int]) -> None:
    with pytest.raises(ConfigurationError, match=f"--{next(iter(bad))}"):
        Pace(**bad)


async def test_the_model_is_the_first_unless_one_is_named() -> None:
    with ForeignServer() as foreign:
        assert await dataclasses.replace(client(foreign), model="").find_model() == "some-model"
        assert await dataclasses.replace(client(foreign), model="other-model").find_model() == "other-model"
        with pytest.raises(ModelNotFound, match=r"'nobody'.*some-model, other-model"):
            await dataclasses.replace(client(foreign), model="nobody").find_model()
        with pytest.raises(Unauthenticated, match=r"401.*wrong key"):
            await dataclasses.replace(client(foreign), api_key=None).find_model()
        url = foreign.url
    with pytest.raises(Unavailable, match="cannot be reached"):
        await Server(Origin.parse(url)).find_model()


@pytest.mark.parametrize("url", ["", "127.0.0.1:80", "ftp://a", "http://", "http://a:b", "http://u:p@a", "http://a b"])
def test_a_bad_url_names_its_option(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        Origin.parse(url)


def test_a_url_may_end_in_v1_and_have_a_path() -> None:
    assert Origin.parse("http://a:1/proxy/v1/").path == "/proxy"
    assert Origin.parse("http://[::1]:1").address == "[::1]:1"
    assert Origin.parse("https://a").port == 443
