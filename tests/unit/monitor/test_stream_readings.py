"""What alerts read of streams, and what a spec lets them do."""

from typing import Any

import pytest

from headrace.monitor.slo import (
    Condition,
    ConditionReading,
    Fact,
    StreamFacts,
    StreamPromise,
    read_stream,
    stream_promises_of,
)

PROMISE = StreamPromise(stream="pay", lag_s=60.0, dead_letters=0)
SILENT = StreamPromise(stream="pay", lag_s=None, dead_letters=None)
WELL = StreamFacts(lag_s=1.0, running=2)


def is_bad(
    condition: Condition, facts: StreamFacts, promise: StreamPromise = PROMISE
) -> bool | None:
    reading = read_stream(condition, promise, facts)
    return None if reading is None else reading.is_bad


def promise(**more: object) -> StreamPromise:
    [found] = stream_promises_of({"streams": [{"name": "pay", **more}]})
    return found


def test_a_stream_lags_if_it_is_behind_by_more_than_it_may_be() -> None:
    assert is_bad(Fact.STREAM_LAGS, WELL) is False
    assert is_bad(Fact.STREAM_LAGS, StreamFacts(lag_s=60.0, running=1)) is False
    assert is_bad(Fact.STREAM_LAGS, StreamFacts(lag_s=60.1, running=1)) is True


def test_a_stream_that_is_paused_may_be_anywhere_and_is_not_down() -> None:
    paused = StreamFacts(lag_s=9000.0, running=0, paused=True)

    assert is_bad(Fact.STREAM_LAGS, paused) is False
    assert is_bad(Fact.STREAM_DOWN, paused) is False


def test_a_lag_that_nobody_knows_says_nothing_unless_the_stream_is_paused() -> None:
    assert is_bad(Fact.STREAM_LAGS, StreamFacts(running=1)) is None
    assert is_bad(Fact.STREAM_LAGS, StreamFacts(paused=True)) is False


def test_a_stream_is_down_while_no_worker_takes_records() -> None:
    assert is_bad(Fact.STREAM_DOWN, StreamFacts(running=0)) is True
    assert is_bad(Fact.STREAM_DOWN, StreamFacts(running=1)) is False


def test_one_failing_worker_is_enough() -> None:
    assert is_bad(Fact.WORKERS_FAIL, StreamFacts(running=3, failing=1)) is True
    assert is_bad(Fact.WORKERS_FAIL, WELL) is False


def test_dead_letters_are_bad_above_what_is_no_news() -> None:
    some = StreamFacts(running=1, dead_letters=5)

    assert read_stream(Fact.DEAD_LETTERS, PROMISE, some) == ConditionReading(
        value=5, threshold=0, is_bad=True
    )
    assert is_bad(Fact.DEAD_LETTERS, some, promise(alerts={"dead_letters": 5})) is False
    assert is_bad(Fact.DEAD_LETTERS, WELL) is False


@pytest.mark.parametrize("condition", [Fact.STREAM_LAGS, Fact.DEAD_LETTERS])
def test_what_nobody_wants_to_hear_of_is_not_read(condition: Condition) -> None:
    assert read_stream(condition, SILENT, StreamFacts(lag_s=1e6, dead_letters=9)) is None


@pytest.mark.parametrize(
    "condition", [Fact.STREAM_LAGS, Fact.STREAM_DOWN, Fact.WORKERS_FAIL, Fact.DEAD_LETTERS]
)
def test_of_a_stream_that_nobody_looked_at_nothing_is_said(condition: Condition) -> None:
    assert read_stream(condition, PROMISE, None) is None


@pytest.mark.parametrize(
    ("entry", "lag_s"),
    [
        ({}, 60.0),
        ({"workers": 3}, 60.0),
        ({"workers": {"max": 3}}, 60.0),
        ({"workers": {"max": 3, "target_lag_s": 5.0}}, 5.0),
        ({"workers": {"max": 3, "target_lag_s": 5.0}, "alerts": {"dead_letters": 3}}, 5.0),
        ({"workers": {"max": 3, "target_lag_s": 5.0}, "alerts": {"lag_s": 30.0}}, 30.0),
        ({"workers": {"max": 3, "target_lag_s": 5.0}, "alerts": {"lag_s": None}}, None),
        ({"alerts": {"lag_s": None}}, None),
    ],
)
def test_a_stream_may_lag_as_its_spec_says_or_by_its_target(
    entry: dict[str, Any], lag_s: float | None
) -> None:
    assert promise(**entry).lag_s == lag_s


def test_dead_letters_are_told_unless_the_spec_says_else() -> None:
    assert promise().dead_letters == 0
    assert promise(alerts={"dead_letters": None}).dead_letters is None
    assert stream_promises_of({}) == ()
