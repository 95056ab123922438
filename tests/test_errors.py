from http import HTTPStatus

import grpc
import pytest

from gemline import errors
from gemline.errors import GemlineError

ALL = sorted(errors.BY_CODE.values(), key=lambda error: error.code)


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_every_error_has_a_status_that_http_and_grpc_know(error: type[GemlineError]) -> None:
    assert HTTPStatus(error.http_status) >= HTTPStatus.BAD_REQUEST
    assert isinstance(grpc.StatusCode[error.grpc_status], grpc.StatusCode)


def test_the_table_in_the_docstring_is_the_table_in_the_code() -> None:
    rows = [line.replace("├──", "").replace("└──", "").replace("│", "").split() for line in table_lines()]
    told = {name: (code, http, grpc_name) for name, code, http, grpc_name, *_ in rows}
    built = {
        error.__name__: (error.code, str(error.http_status), error.grpc_status)
        for error in ALL
        if not issubclass(error, errors.ConfigurationError)
    }
    assert {name: row for name, row in told.items() if row[1] != "-"} == built


def table_lines() -> list[str]:
    return [line for line in (errors.__doc__ or "").splitlines() if "──" in line]


def test_no_two_errors_share_a_code() -> None:
    codes = [error.code for error in ALL]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("error", ALL, ids=lambda error: error.__name__)
def test_an_error_survives_being_named_by_its_code(error: type[GemlineError]) -> None:
    again = errors.from_code(error.code, "what happened", param="model")
    assert (type(again), again.message, again.param) == (error, "what happened", "model")


def test_a_code_of_another_version_becomes_an_internal_error() -> None:
    assert type(errors.from_code("from_the_future", "what happened")) is errors.InternalError


def test_an_error_reads_as_its_message() -> None:
    assert str(errors.ModelNotFound("no worker serves gemma-3")) == "no worker serves gemma-3"
