"""What does each condition say about a stream now? Pure."""

from typing import assert_never

from headrace.monitor.slo import Reading
from headrace.monitor.stream_conditions import (
    DeadLetters,
    StreamCondition,
    StreamDown,
    StreamFacts,
    StreamLags,
    StreamPromise,
    WorkersFail,
)


def read_stream(
    condition: StreamCondition, promise: StreamPromise, facts: StreamFacts | None
) -> Reading | None:
    """What one condition says about one stream; None if nothing can be said, or nobody asks."""
    if facts is None:
        return None
    match condition:
        case StreamLags():
            return _lags(promise.lag_s, facts)
        case StreamDown():
            is_down = facts.running < 1 and not facts.paused
            return Reading(value=facts.running, threshold=1, is_bad=is_down)
        case WorkersFail():
            return Reading(value=facts.failing, threshold=1, is_bad=facts.failing >= 1)
        case DeadLetters():
            allowed, count = promise.dead_letters, facts.dead_letters
            if allowed is None:
                return None
            return Reading(value=count, threshold=allowed, is_bad=count > allowed)
        case _:
            assert_never(condition)


def _lags(allowed_s: float | None, facts: StreamFacts) -> Reading | None:
    if allowed_s is None:
        return None
    if facts.paused:
        return Reading(value=facts.lag_s or 0.0, threshold=allowed_s, is_bad=False)
    if facts.lag_s is None:
        return None
    return Reading(value=facts.lag_s, threshold=allowed_s, is_bad=facts.lag_s > allowed_s)
