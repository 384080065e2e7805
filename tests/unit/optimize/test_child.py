"""Functions that run in another process: what they return, say and raise."""

import os
import time
from collections.abc import Callable

import pytest

from headrace.core import InvalidArgumentError, UnsupportedModelError
from headrace.optimize.child import run_in_child

pytestmark = pytest.mark.slow

Say = Callable[[str], None]


def _double(say: Say, number: int) -> dict[str, int]:
    say("doubling")
    return {"doubled": 2 * number, "process": os.getpid()}


def _refuse(_: Say) -> int:
    msg = "it has no units"
    raise InvalidArgumentError(msg)


def _crash(_: Say) -> int:
    os._exit(7)


def _stall(_: Say) -> int:
    time.sleep(600)
    return 0


def test_a_function_returns_from_another_process_and_says_what_it_does() -> None:
    heard: list[str] = []

    result = run_in_child(
        _double, 21, returns=dict[str, int], raises=UnsupportedModelError, on_progress=heard.append
    )

    assert result["doubled"] == 42
    assert result["process"] != os.getpid()
    assert heard == ["doubling"]


@pytest.mark.parametrize(
    ("function", "deadline", "why"),
    [
        (_refuse, float("inf"), "it has no units"),
        (_crash, float("inf"), "its process ended with status 7"),
        (_stall, 0.0, "its process did not finish by the deadline"),
    ],
)
def test_a_failure_of_any_kind_has_the_class_that_the_caller_names(
    function: Callable[[Say], int], deadline: float, why: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=why):
        run_in_child(function, returns=int, raises=UnsupportedModelError, deadline=deadline)
