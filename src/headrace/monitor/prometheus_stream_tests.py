"""How is it shown that the rules of streams do what they say? Tests for `promtool test rules`."""

from collections.abc import Iterator, Sequence
from typing import Any, Final

from headrace.monitor.alert_kinds import ALERTS, AlertKind
from headrace.monitor.prometheus_series import Counter, Gauge, Series, expectation, rule_test
from headrace.monitor.stream_conditions import (
    DeadLetters,
    StreamDown,
    StreamLags,
    StreamPromise,
    WorkersFail,
)

Document = dict[str, Any]

STEP_S: Final = 60.0
_SLACK: Final = 3


def stream_tests(promises: Sequence[StreamPromise]) -> Iterator[Document]:
    """One test for each alert of streams, on the first stream that it can fire for."""
    for kind in ALERTS:
        if kind.is_of_stream:
            concerned = next((one for one in promises if _can_fire(kind, one)), None)
            if concerned is not None:
                yield _test(kind, concerned)


def _can_fire(kind: AlertKind, promise: StreamPromise) -> bool:
    match kind.condition:
        case StreamLags():
            return promise.lag_s is not None
        case DeadLetters():
            return promise.dead_letters is not None
        case _:
            return True


def _test(kind: AlertKind, promise: StreamPromise) -> Document:
    window_s = kind.condition.window_s if isinstance(kind.condition, DeadLetters) else 0.0
    window = round(window_s / STEP_S)
    bad = _SLACK + window + round(kind.for_s / STEP_S) + 1
    keep = round(kind.keep_firing_for_s / STEP_S)
    good = _SLACK + window + keep
    labels = f'stream="{promise.stream}"'
    expected = [
        expectation(kind.name, labels, at_s=(bad - 1) * STEP_S, firing=1),
        expectation(kind.name, labels, at_s=(bad - 1 + keep) * STEP_S, firing=1),
        expectation(kind.name, labels, at_s=(bad + good - 1) * STEP_S, firing=0),
    ]
    series = _series(kind, promise)
    return rule_test(kind.name, series, expected, step_s=STEP_S, bad_steps=bad, good_steps=good)


def _series(kind: AlertKind, promise: StreamPromise) -> Iterator[Series]:
    stream = f'stream="{promise.stream}"'
    worker = f'{stream},worker="{promise.stream}-0"'
    match kind.condition:
        case StreamLags():
            limit_s, place = promise.lag_s or 0.0, 'topic="in",partition="0"'
            lag = f"headrace_stream_lag_seconds{{{worker},{place}}}"
            yield Gauge(lag, 2 * limit_s, limit_s / 2)
            yield Gauge(f"headrace_stream_paused{{{stream}}}", 0, 0)
        case StreamDown():
            yield Gauge(f"headrace_stream_workers_running{{{stream}}}", 0, 0)
            yield Gauge(f"headrace_stream_paused{{{stream}}}", 0, 1)  # paused is as good as running
        case WorkersFail():
            yield Gauge(f"headrace_stream_workers_failing{{{stream}}}", 1, 0)
        case DeadLetters():
            more = (promise.dead_letters or 0) + 1
            yield Counter(f"headrace_stream_dead_letters_total{{{worker}}}", more, 0)
        case _:
            raise AssertionError(kind)
