"""Whether anybody answers where a cluster is said to be is known before its library is asked."""

from contextlib import nullcontext
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.jobs.engines.address import Place, places_of, why_silent

SCHEMES = ("spark",)


@pytest.mark.parametrize(
    ("address", "places"),
    [
        ("auto", []),
        ("yarn", []),
        ("head:6379", [("head", 6379)]),
        ("[::1]:6379", [("::1", 6379)]),
        ("spark://a:7077,b:7078", [("a", 7077), ("b", 7078)]),
        ("spark://a:7077/", [("a", 7077)]),
        ("k8s://https://host:6443", []),
        ("ray://host", []),
    ],
)
def test_places_of_an_address(address: str, places: list[Place]) -> None:
    assert places_of(address, schemes=SCHEMES) == places


@given(st.text(min_size=1, max_size=40))
def test_any_address_is_taken_apart_or_refused(text: str) -> None:
    try:
        places = places_of(f"spark://{text}", schemes=SCHEMES)
    except InvalidArgumentError:
        return
    assert all(host and 0 < port < 65536 for host, port in places)


def test_one_place_that_answers_is_enough() -> None:
    asked = []

    def connect(place: Place, timeout_s: float) -> nullcontext[None]:
        asked.append((place, timeout_s))
        if place[0] == "a":
            raise ConnectionRefusedError(111, "Connection refused")
        return nullcontext()

    assert why_silent([("a", 1), ("b", 2), ("c", 3)], connect) == ""
    assert asked == [(("a", 1), 10.0), (("b", 2), 10.0)]


def test_each_place_that_does_not_answer_has_its_reason() -> None:
    reasons: dict[str, OSError] = {
        "a": ConnectionRefusedError(111, "Connection refused"),
        "b": TimeoutError("timed out"),
        "c": OSError("something else"),
    }

    def connect(place: Place, timeout_s: float) -> NoReturn:
        assert timeout_s > 0
        raise reasons[place[0]]

    told = why_silent([("a", 1), ("b", 2), ("c", 3)], connect)
    assert told == "a:1: Connection refused; b:2: no answer within 10 s; c:3: something else"


def test_no_place_is_not_silent() -> None:
    assert why_silent([]) == ""
