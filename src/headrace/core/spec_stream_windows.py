"""What may stand under `windows` of a stream: what is counted or summed, by key, over how long."""

import math
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal, TypeGuard

from pydantic import Field, Strict

from headrace.core.spec_base import SpecModel
from headrace.core.spec_stream_topics import kind_without_fields

MOST_PARTS: Final = 10_000
"""Of one window, so that one value never means adding up more."""
_US: Final = 1_000_000
_LEAST_S: Final = 1 / _US
_MOST_S: Final = 366 * 86_400.0
_WITH_PARTITIONS: Final = ("log", "kafka")
_OTHERS: Final = ("nats", "redis", "rediss", "valkey", "valkeys", "pulsar", "pulsar+ssl")


class StreamWindowSpec(SpecModel):
    """One value per key over the last while: a field that each record has from then on."""

    name: str = Field(
        min_length=1, max_length=300, description="Of the field that records get by it."
    )
    size_s: float = Field(
        ge=_LEAST_S, le=_MOST_S, description="Over how long. Unit: seconds of the records' time."
    )
    slide_s: float | None = Field(
        default=None,
        ge=_LEAST_S,
        le=_MOST_S,
        description="Windows end at multiples of it since 1970; null for tumbling ones: one begins "
        "where the last one ends. Unit: seconds.",
    )
    function: Literal["count", "sum", "min", "max", "mean"] = Field(
        default="count", description="What it tells of its records."
    )
    field: str = Field(
        default="",
        max_length=300,
        description="Whose values; `count` without one counts all records.",
    )
    key: str = Field(
        default="",
        max_length=300,
        description="The field that holds the key; empty for the record's own.",
    )


class StreamWindowsSpec(SpecModel):
    """Windows of a stream. They need a topic with partitions: counts are of one partition each."""

    windows: Annotated[tuple[StreamWindowSpec, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=256, description="See StreamWindowSpec."
    )
    time: str = Field(
        default="",
        max_length=300,
        description="The field with a record's time (Unix seconds, or ISO 8601 with a zone); empty "
        "for the record's timestamp.",
    )
    lateness_s: float = Field(
        default=60.0,
        ge=0.0,
        le=_MOST_S,
        description="So much older than the newest record of its partition may one be; an older "
        "one is scored and not counted, with the windows of the oldest moment that still counts. "
        "Unit: seconds.",
    )
    ahead_s: float = Field(
        default=300.0,
        ge=0.0,
        le=_MOST_S,
        description="So much later than now may a record's time be. Unit: seconds.",
    )
    checkpoint_s: float = Field(
        default=0.2,
        ge=0.0,
        le=3600.0,
        description="How often counts are written to disk; what came since is read again after a "
        "crash. Unit: seconds.",
    )


def window_disagreements(stream: Mapping[Any, Any], place: str) -> Iterator[tuple[str, str]]:
    """What is wrong between `windows` and the rest of a stream, and between windows."""
    told = stream.get("windows")
    if told is None:
        return
    place = f"{place}.windows"
    kind = kind_without_fields(stream)
    if kind is not None:
        yield place, f"are added to the fields of a record, and the format {kind!r} has none"
    source = stream.get("source")
    broker = source.get("broker") if isinstance(source, Mapping) else None
    if isinstance(broker, str) and broker.partition(":")[0].lower() in _OTHERS:
        known = " or ".join(f"{scheme}:" for scheme in _WITH_PARTITIONS)
        yield (
            place,
            "need a broker whose topics have partitions, each read by one worker: " + known,
        )
    windows = told.get("windows") if isinstance(told, Mapping) else None
    names: dict[str, int] = {}
    for at, window in enumerate(windows if isinstance(windows, list | tuple) else ()):
        if isinstance(window, Mapping):
            yield from _of_one(window, f"{place}.windows[{at}]", f"{place}.windows", names, at)


def _of_one(
    window: Mapping[Any, Any], place: str, windows: str, names: dict[str, int], at: int
) -> Iterator[tuple[str, str]]:
    name = window.get("name")
    if isinstance(name, str) and names.setdefault(name, at) != at:
        yield f"{place}.name", f"{name!r} is already the name of {windows}[{names[name]}]"
    function = window.get("function", "count")
    if isinstance(function, str) and function != "count" and not window.get("field"):
        yield f"{place}.field", f"{function!r} needs the field whose values it is of"
    size_s, slide_s = window.get("size_s"), window.get("slide_s")
    if not (_is_length(size_s) and _is_length(slide_s)):
        return  # told on its own, or tumbling
    if slide_s > size_s:
        yield f"{place}.slide_s", f"is {slide_s:g}, more than 'size_s', {size_s:g}"
    elif (parts := _parts(size_s, slide_s)) > MOST_PARTS:
        message = (
            f"makes of {size_s:g} s windows of {parts} parts, and at most {MOST_PARTS} are kept: "
            "choose one that divides 'size_s' and is not so small"
        )
        yield f"{place}.slide_s", message


def _parts(size_s: float, slide_s: float) -> int:
    size = round(size_s * _US)
    return size // math.gcd(size, round(slide_s * _US))


def _is_length(value: Any) -> TypeGuard[float]:  # noqa: ANN401  # whatever stands there
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and _LEAST_S <= value <= _MOST_S
