"""What counts as noticed by the tests, and what does not."""

from scripts.mutants import tally, unnoticed

RESULTS = {
    "headrace.engine.a": 1,  # a test failed
    "headrace.engine.b": 0,  # none did
    "headrace.engine.c": None,  # not tried
    "headrace.rollout.d": 36,  # it never ended
    "headrace.rollout.e": 33,  # no test reaches it
}


def test_what_was_not_tried_is_not_noticed() -> None:
    assert tally("engine", RESULTS, RESULTS) == (1, 2)
    assert tally("rollout", RESULTS, RESULTS) == (1, 2)


def test_what_no_test_reaches_is_unnoticed() -> None:
    assert unnoticed(RESULTS, RESULTS) == ["headrace.engine.b", "headrace.rollout.e"]
