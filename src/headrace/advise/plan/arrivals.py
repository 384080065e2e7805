"""Arrival logs and rate tables: number of requests, their times, and repetition of keys.

Files are read once, line by line; only counts are kept, so logs may be of any size.
"""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from headrace.core import InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE

TIMES: Final = ("timestamp", "event_timestamp", "time", "ts", "at", "@timestamp", "start_time")
RATES: Final = ("rate", "rps", "qps", "requests_per_s", "value")
MAX_KEYS: Final = 5_000_000
_MAX_SECONDS: Final = 5_000_000
_MAX_LINE_BYTES: Final = 4 << 20
_MINUTE_S: Final = 60
_YEAR_3000_S: Final = 32_503_680_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalLog:
    """Statistics of an arrival log."""

    rows: int

    seconds: float
    """Time between the first and the last row."""

    rate: float
    """Mean rate, in requests per second."""

    peak_rate: float
    """Rate of the busiest minute, or second if the log is shorter than a minute."""

    burstiness: float
    """Variance over mean of counts per second; 1 for Poisson arrivals."""

    quiet_ratio: float
    """Share of minutes between the first and the last row without arrivals."""

    keys: int | None
    """Number of distinct keys; None without a key column."""

    repeat_ratio: float | None
    """Share of rows whose key occurred before."""

    unreadable: int
    """Number of lines without a valid time."""


def read_arrivals(path: Path, *, time_column: str = "", key_column: str = "") -> ArrivalLog:
    """Read the statistics of a log of JSON lines or CSV (with a header).

    Args:
        time_column: Empty selects the first of the usual names; ISO 8601, or Unix time in seconds,
            milliseconds, microseconds or nanoseconds.
        key_column: Identifies equal requests; empty disables counting.

    Raises:
        InvalidArgumentError: The log cannot be read, or has no valid time.
    """
    counts: Counter[int] = Counter()
    keys: set[object] = set()
    repeats = unreadable = rows = 0
    first, last = math.inf, -math.inf
    for row in _rows(path):
        time_s = _time_of(row, time_column) if row is not None else None
        if row is None or time_s is None:
            unreadable += 1
            continue
        rows += 1
        first, last = min(first, time_s), max(last, time_s)
        counts[int(time_s)] += 1
        if len(counts) > _MAX_SECONDS:
            msg = f"{path}: over {_MAX_SECONDS:,} distinct seconds; split the file"
            raise InvalidArgumentError(msg)
        if key_column:
            repeats += _is_repeated(row, key_column, keys, path)
    if not rows:
        columns = f"'{time_column}'" if time_column else f"one of {', '.join(TIMES)}"
        msg = f"{path} has no row with a time in {columns}; set the column with --time-column"
        raise InvalidArgumentError(msg)
    span = max(counts) - min(counts) + 1
    minutes: Counter[int] = Counter()
    for second, count in counts.items():
        minutes[second // _MINUTE_S] += count
    mean = rows / span
    square = sum(count * count for count in counts.values()) / span
    is_long = span >= _MINUTE_S
    return ArrivalLog(
        rows=rows,
        seconds=last - first,
        rate=rows / max(last - first, 1.0),
        peak_rate=max(minutes.values()) / _MINUTE_S if is_long else float(max(counts.values())),
        burstiness=(square - mean * mean) / mean,
        quiet_ratio=1 - len(minutes) / (max(minutes) - min(minutes) + 1),
        keys=len(keys) if key_column else None,
        repeat_ratio=repeats / rows if key_column else None,
        unreadable=unreadable,
    )


def read_rates(path: Path) -> tuple[float, ...]:
    """Read requests per second over equal intervals, from a column of CSV or JSON lines.

    Raises:
        InvalidArgumentError: The file cannot be read, or a row has no rate; the message names it.
    """
    rates: list[float] = []
    for number, row in enumerate(_rows(path), start=1):
        name = next((name for name in RATES if row is not None and name in row), None)
        try:
            rate = math.nan if row is None or name is None else float(row[name])
        except (TypeError, ValueError, OverflowError):
            rate = math.nan
        if not 0.0 <= rate < math.inf:
            msg = f"{path}, row {number}: no non-negative rate in {' or '.join(RATES)}"
            raise InvalidArgumentError(msg)
        rates.append(rate)
    if not rates:
        raise InvalidArgumentError(f"{path} contains no rates; each row needs a rate")
    return tuple(rates)


def _rows(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Yield rows by column name; None for an invalid line."""
    try:
        with path.open("rb") as file:
            lines = _lines(file)
            first = next((line for line in lines if line.strip()), b"")
            if first.lstrip()[:1] == b"{":
                yield _json(first)
                yield from (_json(line) for line in lines if line.strip())
                return
            names = next(csv.reader([first.decode("utf-8-sig")]), [])
            for row in csv.reader(line.decode(errors="replace") for line in lines):
                yield dict(zip(names, row, strict=False)) if len(row) == len(names) else None
    except OSError as error:
        msg = f"{path} cannot be read: {error.strerror or error}"
        raise InvalidArgumentError(msg) from None
    except (csv.Error, UnicodeDecodeError) as error:
        msg = f"{path} is neither JSON lines nor CSV: {error}"
        raise InvalidArgumentError(msg) from None


def _lines(file: BinaryIO) -> Iterator[bytes]:
    while line := file.readline(_MAX_LINE_BYTES):
        if len(line) >= _MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := file.readline(_MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield b"?"
        else:
            yield line


def _json(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = msgspec.json.decode(line)
    except UNDECODABLE:
        return None
    return row if isinstance(row, dict) else None


def _time_of(row: Mapping[str, Any], column: str) -> float | None:
    raw = row.get(column) if column else next((row[n] for n in TIMES if n in row), None)
    if isinstance(raw, str):
        try:
            moment = datetime.fromisoformat(raw.strip())
        except ValueError:
            try:
                raw = float(raw)
            except ValueError:
                return None
        else:
            zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return zoned.timestamp()
    if isinstance(raw, bool) or not isinstance(raw, int | float) or not math.isfinite(raw):
        return None
    seconds = float(raw)
    while seconds > _YEAR_3000_S:  # it is in milliseconds, or smaller
        seconds /= 1000
    return seconds if seconds >= 0 else None


def _is_repeated(row: Mapping[str, Any], column: str, keys: set[object], path: Path) -> bool:
    """Whether the row's key occurred before."""
    if column not in row:
        msg = f"{path} has a row without '{column}'; its columns are: {', '.join(map(str, row))}"
        raise InvalidArgumentError(msg)
    key = str(row[column])
    if key in keys:
        return True
    if len(keys) >= MAX_KEYS:
        msg = f"{path}: over {MAX_KEYS:,} distinct values of '{column}'; split the file"
        raise InvalidArgumentError(msg)
    keys.add(key)
    return False
