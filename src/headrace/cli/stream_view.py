"""Streams as rows of a table; the first row is the head."""

from collections.abc import Mapping, Sequence
from typing import Any

from headrace.core.text import duration_text, number_text

Row = tuple[str, ...]


def stream_rows(streams: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row for each stream."""
    head = ("stream", "state", "workers", "rate/s", "lag", "oldest", "answered", "dead", "by")
    return [head, *(_stream(one) for one in streams)]


def members_rows(stream: Mapping[str, Any]) -> list[Row]:
    """A row for each worker of a stream."""
    head = ("worker", "state", "pid", "restarts", "partitions", "rate/s", "lag", "answered")
    return [head, *(_member(one) for one in stream["members"])]


def _stream(one: Mapping[str, Any]) -> Row:
    bounds = ""
    if one["min_workers"] != one["max_workers"]:
        bounds = f" of {one['min_workers']}-{one['max_workers']}"
    return (
        one["name"],
        one["state"],
        f"{one['ready']}/{one['workers']}{bounds}",
        f"{one['rate']:,.0f}",
        number_text(one["lag_records"]),
        duration_text(one["lag_s"]),
        number_text(one["answered"]),
        number_text(one["dead_letters"]),
        one["model"],
    )


def _member(one: Mapping[str, Any]) -> Row:
    return (
        one["member"],
        f"{one['state']}, of before" if one["outdated"] else one["state"],
        str(one["pid"] or "-"),
        str(one["restarts"]),
        " ".join(one["partitions"]) or "-",
        f"{one['rate']:,.0f}",
        number_text(one["lag_records"]),
        number_text(one["answered"]),
    )
