"""The head of a Ray cluster is checked before Ray's own library connects to it."""

from contextlib import nullcontext
from typing import NoReturn

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.jobs.engines.ray import (
    ASKS,
    HostPort,
    check_address,
    has_token,
    host_of,
    why_refused,
    why_silent,
)


@pytest.mark.parametrize(
    "address", ["local", "auto", "10.0.0.5:6379", "[::1]:6379", "ray://head:10001", "anyscale://x"]
)
def test_addresses_that_ray_takes(address: str) -> None:
    assert check_address(address) == address


@pytest.mark.parametrize(
    "address", ["head", "head:", "head:0", "head:99999", ":6379", "ray://head"]
)
def test_addresses_that_ray_does_not_take_are_refused_with_what_it_takes(address: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"--address .*HOST:PORT"):
        check_address(address)


@pytest.mark.parametrize(
    ("address", "head"),
    [
        ("auto", None),
        ("head:6379", ("head", 6379)),
        ("[::1]:6379", ("::1", 6379)),
        ("ray://a:10001", ("a", 10001)),
        ("ray://a:10001/", ("a", 10001)),
        ("anyscale://host", None),
    ],
)
def test_the_host_of_an_address(address: str, head: HostPort | None) -> None:
    assert host_of(address) == head


@given(st.text(min_size=1, max_size=40))
def test_any_address_is_taken_apart_or_refused(text: str) -> None:
    try:
        head = host_of(f"ray://{text}")
    except InvalidArgumentError:
        return
    assert head is None or (head[0] and 0 < head[1] < 65536)


def test_a_head_that_accepts_a_connection_is_not_silent() -> None:
    calls = []

    def connect(head: HostPort, timeout_s: float) -> nullcontext[None]:
        calls.append((head, timeout_s))
        return nullcontext()

    assert why_silent(("a", 1), connect) == ""
    assert calls == [(("a", 1), 10.0)]


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "a:1: Connection refused"),
        (TimeoutError("timed out"), "a:1: no answer within 10 s"),
        (OSError("something else"), "a:1: something else"),
    ],
)
def test_a_head_that_does_not_answer_has_its_reason(error: OSError, why: str) -> None:
    def connect(head: HostPort, timeout_s: float) -> NoReturn:
        assert (head, timeout_s) == (("a", 1), 10.0)
        raise error

    assert why_silent(("a", 1), connect) == why


@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED])
def test_what_is_silent_is_not_ray(code: grpc.StatusCode) -> None:
    told = {why_refused(code, "head:6379", shows_token=shows) for shows in (True, False)}

    assert told == {"head:6379: what listens there does not answer as Ray does"}


def test_a_token_is_asked_for_where_none_is_shown() -> None:
    refused = grpc.StatusCode.UNAUTHENTICATED

    assert why_refused(refused, "head:6379", shows_token=False) == ASKS
    assert why_refused(refused, "head:6379", shows_token=True) == ""


def test_a_head_that_knows_another_method_is_one() -> None:
    assert why_refused(grpc.StatusCode.UNIMPLEMENTED, "head:6379", shows_token=False) == ""


def test_whether_a_token_is_shown_is_as_ray_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {}
    for mode in ("token", "TOKEN", "disabled", ""):
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
        shown[mode] = has_token()

    assert shown == {"token": True, "TOKEN": True, "disabled": False, "": False}
