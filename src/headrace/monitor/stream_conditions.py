"""Alert conditions of streams, and the promises and facts that they compare."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headrace.core.spec_streams import StreamAlertsSpec

LETTERS_WINDOW_S: Final = 300.0
"""Over which dead letters are counted."""


@dataclass(frozen=True, slots=True)
class StreamLags:
    """A stream is further behind than it may be; one that is paused may be anywhere."""


@dataclass(frozen=True, slots=True)
class StreamDown:
    """No worker takes records, though nobody paused the stream."""


@dataclass(frozen=True, slots=True)
class WorkersFail:
    """A worker ends again and again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """Records come for which there is no answer."""

    window_s: float = LETTERS_WINDOW_S


StreamCondition = StreamLags | StreamDown | WorkersFail | DeadLetters


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPromise:
    """What a stream may do; None where nobody wants to hear of it.

    `dead_letters`: within the window of `DeadLetters`.
    """

    stream: str
    lag_s: float | None
    dead_letters: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What is known of one stream.

    `lag_s`: None while nobody knows it. `dead_letters`: those of the window. `running`: workers
    that take records. `failing`: those that ended several times in a row. `paused`: as ordered.
    """

    lag_s: float | None = None
    dead_letters: int = 0
    running: int = 0
    failing: int = 0
    paused: bool = False


def stream_promises_of(document: Mapping[str, Any]) -> tuple[StreamPromise, ...]:
    """What the streams of a spec document that was checked before may do, in its order."""
    return tuple(map(_promise, document.get("streams") or ()))


def _promise(entry: Mapping[str, Any]) -> StreamPromise:
    given = entry.get("alerts") or {}
    alerts = StreamAlertsSpec.model_validate(given)
    workers = entry.get("workers")
    target_s = workers.get("target_lag_s") if isinstance(workers, Mapping) else None
    is_by_target = target_s is not None and "lag_s" not in given
    return StreamPromise(
        stream=entry["name"],
        lag_s=target_s if is_by_target else alerts.lag_s,
        dead_letters=alerts.dead_letters,
    )
