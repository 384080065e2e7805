import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.kubernetes.failures import (
    ApiUnavailableError,
    ObjectChangedError,
    ObjectMissingError,
    WatchExpiredError,
    delay_s,
    failure_of,
)
from headrace.core import HeadraceError, InvalidArgumentError, PermissionDeniedError


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (403, PermissionDeniedError),
        (404, ObjectMissingError),
        (409, ObjectChangedError),
        (410, WatchExpiredError),
        (422, InvalidArgumentError),
        (429, ApiUnavailableError),
        (500, ApiUnavailableError),
        (503, ApiUnavailableError),
    ],
)
def test_an_answer_means_one_error(status: int, kind: type[HeadraceError]) -> None:
    error = failure_of(status, b'{"message": "why"}', "", what="get Pod p")

    assert type(error) is kind
    assert str(error).startswith("get Pod p: why")


def test_a_lack_of_rights_names_the_way_out() -> None:
    assert "Role" in str(failure_of(403, b"", "", what="list Pod"))


@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b"\xff\xfe", b'{"message": null}'])
def test_whatever_stands_in_an_answer_becomes_an_error(body: bytes) -> None:
    assert "get Pod" in str(failure_of(500, body, "soon", what="get Pod"))


def test_the_server_says_when_to_come_again() -> None:
    assert failure_of(429, b"", "7", what="list").retry_after_s == 7.0


@given(failures=st.integers(1, 10_000), chance=st.floats(0.0, 1.0))
def test_delays_grow_within_bounds(failures: int, chance: float) -> None:
    assert 0.1 <= delay_s(failures, chance=lambda: chance) <= 30.0


@given(asked=st.floats(0.0, 600.0), chance=st.floats(0.0, 1.0))
def test_nobody_comes_before_the_server_asked_for(asked: float, chance: float) -> None:
    assert delay_s(1, asked_s=asked, chance=lambda: chance) >= asked
