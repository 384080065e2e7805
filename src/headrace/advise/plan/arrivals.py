"""Logs of arrivals and tables of rates: how many requests come, when, and how often a key repeats.

Files are read once, line by line; of logs only counts are held, so that they may be of any size.
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
MOST_KEYS: Final = 5_000_000
_MOST_SECONDS: Final = 5_000_000
_MAX_LINE_BYTES: Final = 4 << 20
_MINUTE_S: Final = 60
_YEAR_3000_S: Final = 32_503_680_000.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrivalLog:
    """What a log says.

    `peak_rate`: of the busiest minute, or second where the log is shorter. `burstiness`: variance
    over mean of counts in a second; 1 is chance (Poisson). `quiet_ratio`: of the minutes between
    first and last those in which nothing came. `keys`: different ones; None where none was named.
    `repeat_ratio`: of rows whose key had come before. `unreadable`: lines without a time.
    """

    rows: int
    seconds: float
    rate: float
    peak_rate: float
    burstiness: float
    quiet_ratio: float
    keys: int | None
    repeat_ratio: float | None
    unreadable: int


def read_arrivals(path: Path, *, time_column: str = "", key_column: str = "") -> ArrivalLog:
    """What a log of JSON lines or CSV (with a line of names) says.

    Args:
        time_column: Empty takes the first of the usual names; ISO 8601, or Unix time in seconds,
            milliseconds, microseconds or nanoseconds.
        key_column: By which rows are the same thing; empty does not count.

    Raises:
        InvalidArgumentError: It cannot be read, or holds no time.
    """
    counts: Counter[int] = Counter()
    keys: set[object] = set()
    repeats = unreadable = rows = 0
    first, last = math.inf, -math.inf
    for row in _rows(path):
        at = _time_of(row, time_column) if row is not None else None
        if row is None or at is None:
            unreadable += 1
            continue
        rows += 1
        first, last = min(first, at), max(last, at)
        counts[int(at)] += 1
        if len(counts) > _MOST_SECONDS:
            msg = f"{path}: over {_MOST_SECONDS:,} different seconds; give a part of it"
            raise InvalidArgumentError(msg)
        if key_column:
            repeats += _again(row, key_column, keys, path)
    if not rows:
        wanted = f"'{time_column}'" if time_column else f"one of {', '.join(TIMES)}"
        msg = f"{path} holds no row with a time in {wanted}; name the column: --time-column"
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
    """Requests a second over equal intervals, out of CSV or JSON lines with a column of them.

    Raises:
        InvalidArgumentError: It cannot be read, or a row has no rate; the message names the row.
    """
    rates: list[float] = []
    for number, row in enumerate(_rows(path), start=1):
        name = next((name for name in RATES if row is not None and name in row), None)
        try:
            rate = math.nan if row is None or name is None else float(row[name])
        except (TypeError, ValueError, OverflowError):
            rate = math.nan
        if not 0.0 <= rate < math.inf:
            msg = f"{path}, row {number}: no rate of 0 or more in {' or '.join(RATES)}"
            raise InvalidArgumentError(msg)
        rates.append(rate)
    if not rates:
        raise InvalidArgumentError(f"{path} holds no rates; each row has a rate")
    return tuple(rates)


def _rows(path: Path) -> Iterator[Mapping[str, Any] | None]:
    """Rows by column; None for a line that is none."""
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
    said = row.get(column) if column else next((row[n] for n in TIMES if n in row), None)
    if isinstance(said, str):
        try:
            moment = datetime.fromisoformat(said.strip())
        except ValueError:
            try:
                said = float(said)
            except ValueError:
                return None
        else:
            zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            return zoned.timestamp()
    if isinstance(said, bool) or not isinstance(said, int | float) or not math.isfinite(said):
        return None
    at = float(said)
    while at > _YEAR_3000_S:  # it is in milliseconds, or smaller
        at /= 1000
    return at if at >= 0 else None


def _again(row: Mapping[str, Any], column: str, keys: set[object], path: Path) -> bool:
    """Whether the row's key has come before."""
    if column not in row:
        msg = f"{path} has a row without '{column}'; its columns are: {', '.join(map(str, row))}"
        raise InvalidArgumentError(msg)
    key = str(row[column])
    if key in keys:
        return True
    if len(keys) >= MOST_KEYS:
        msg = f"{path}: over {MOST_KEYS:,} different values of '{column}'; give a part of it"
        raise InvalidArgumentError(msg)
    keys.add(key)
    return False
