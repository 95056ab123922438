"""`gemline generate` against a gateway."""

import json
from pathlib import Path

import grpc
import pytest
from support.commands import gemline
from support.fake_gateway import REQUEST_ID, Fail, FakeGateway, Say, Served

from gemline.v1 import inference_pb2 as pb


def test_the_text_goes_to_standard_output_and_nothing_else(home: Path, gateway: FakeGateway) -> None:
    done = gemline("generate", "Once", home=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "Hello\n", "")
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateStreamRequest)
    assert request.prompt == "Once"
    assert gateway.metadata[0]["authorization"] == "Bearer gk_ready"


def test_the_prompt_may_come_from_a_pipe(home: Path, gateway: FakeGateway) -> None:
    assert gemline("generate", home=home, stdin="Ünder\n".encode()).returncode == 0
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateStreamRequest)
    assert request.prompt == "Ünder\n"


def test_a_pipe_that_is_no_utf8_is_refused(home: Path) -> None:
    done = gemline("generate", home=home, stdin=b"ab\xff")
    assert done.returncode == 1
    assert done.stderr == "gemline: standard input is not UTF-8: invalid start byte at byte 2\n"


def test_options_reach_the_gateway(home: Path, gateway: FakeGateway) -> None:
    options = ["--max-tokens", "3", "--temperature", "0", "--top-k", "2", "--top-p", "0.5", "--seed", "9"]
    gemline("generate", "x", *options, "--stop", "a", "--stop", "b", "--model", "other", home=home)
    (request,) = gateway.requests
    assert isinstance(request, pb.GenerateStreamRequest)
    assert request.model == "other"
    assert request.sampling == pb.SamplingOptions(
        max_tokens=3, temperature=0, top_k=2, top_p=0.5, seed=9, stop=["a", "b"]
    )


def test_json_is_one_object_with_everything(home: Path) -> None:
    done = gemline("generate", "x", "--json", home=home)
    assert json.loads(done.stdout) == {
        "request_id": REQUEST_ID,
        "text": "Hello",
        "finish_reason": "stop",
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "cached_tokens": 4},
        "band": None,
    }


def test_stats_go_to_standard_error_without_color(home: Path) -> None:
    done = gemline("generate", "x", "--stats", home=home)
    assert done.stdout == "Hello\n"
    assert done.stderr.startswith("(7 tokens in, 3 out, ")
    assert "\x1b" not in done.stderr


def test_an_error_after_some_text_leaves_the_text_and_exits_with_1(home: Path, gateway: FakeGateway) -> None:
    lost = Fail(grpc.StatusCode.UNAVAILABLE, "the worker is gone", (("gemline-code", "worker_lost"),))
    gateway.script.append(Say(("Hel",), fail=lost))
    done = gemline("generate", "x", home=home)
    assert done.returncode == 1
    assert done.stdout in ("Hel\n", "")  # gRPC may drop a piece that the error overtakes
    assert done.stderr == "gemline: the worker is gone\n"


def test_a_given_key_goes_before_the_ready_files(home: Path, gateway: FakeGateway) -> None:
    gemline("generate", "x", home=home, GEMLINE_API_KEY="gk_variable")
    gemline("generate", "x", "--api-key", "gk_option", home=home, GEMLINE_API_KEY="gk_variable")
    sent = [metadata["authorization"] for metadata in gateway.metadata]
    assert sent == ["Bearer gk_variable", "Bearer gk_option"]


def test_an_address_needs_no_ready_file(tmp_path: Path, served: Served) -> None:
    done = gemline("generate", "x", "--address", served.address, home=tmp_path)
    assert done.stdout == "Hello\n"
    assert "authorization" not in served.gateway.metadata[0]


@pytest.mark.parametrize("option", ["--tls", "--root-certificates=/nowhere.pem"])
def test_tls_that_cannot_be_is_an_error_in_one_line(tmp_path: Path, served: Served, option: str) -> None:
    done = gemline("generate", "x", "--address", served.address, option, home=tmp_path)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
