"""What traffic is expected? A rate, or rates over time, and how they grow."""

import csv
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec

from headrace.advise.arrivals import TIMES
from headrace.core import InvalidArgumentError

MOST_RATE: Final = 1e9
MOST_MONTHS: Final = 120
_RATES: Final = ("rate", "rps", "qps", "requests_per_s", "requests_per_second", "value")
_MOST_BYTES: Final = 64 << 20
_MOST_ROWS: Final = 1_000_000
_GAP: Final = 1.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Rates over time: `rates[i]` requests a second from `at_s[i]` (Unix time) on, ascending.

    `step_s`: the usual time between two. `notes`: for people, what was odd in the file.
    """

    at_s: tuple[float, ...]
    rates: tuple[float, ...]
    step_s: float = 3600.0
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> float:
        """Of all points alike; a gap is as if it was not there."""
        return sum(self.rates) / len(self.rates)

    @property
    def peak(self) -> float:
        """The highest."""
        return max(self.rates)


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """A curve and what becomes of it.

    `growth_ratio`: a month, 0.05 is 5 % more. `months`: how far ahead. `peak_factor`: the busiest
    second over the curve, which has averages. `times`: all of it so many times.
    """

    curve: Curve
    growth_ratio: float = 0.0
    months: int = 0
    peak_factor: float = 1.0
    times: float = 1.0

    def grown(self, month: int) -> float:
        """By how much rates are more after so many months."""
        return self.times * (1.0 + self.growth_ratio) ** month

    def peak_rate(self, month: int | None = None) -> float:
        """The busiest second of a month; None for the last."""
        at = self.months if month is None else month
        return self.curve.peak * self.peak_factor * self.grown(at)

    def mean_rate(self, month: int | None = None) -> float:
        """On average over a month; None for the last."""
        return self.curve.mean * self.grown(self.months if month is None else month)


def checked(forecast: Forecast) -> Forecast:
    """The same forecast.

    Raises:
        InvalidArgumentError: A figure of it makes no sense.
    """
    if not 0 <= forecast.months <= MOST_MONTHS:
        msg = f"a forecast is for 0 to {MOST_MONTHS} months, not {forecast.months}"
        raise InvalidArgumentError(msg)
    for what, value, low, high in (
        ("the growth a month", forecast.growth_ratio, -0.9, 10.0),
        ("the peak factor", forecast.peak_factor, 1.0, 1000.0),
        ("the multiple (--at)", forecast.times, 1e-6, 1e6),
    ):
        if not (math.isfinite(value) and low <= value <= high):
            raise InvalidArgumentError(f"{what} is from {low:g} to {high:g}, not {value:g}")
    peak = max(forecast.peak_rate(month) for month in (0, forecast.months))
    if not 0.0 < peak <= MOST_RATE:
        what = "there is no traffic in it" if peak == 0.0 else f"{peak:,.3g} requests/s"
        msg = (
            f"the forecast's peak is to be above 0 and at most {MOST_RATE:,.0f} requests/s: {what}"
        )
        raise InvalidArgumentError(msg)
    return forecast


def constant(rate: float) -> Curve:
    """The same rate all the time.

    Raises:
        InvalidArgumentError: It is none.
    """
    if not (math.isfinite(rate) and 0.0 < rate <= MOST_RATE):
        msg = f"a rate is above 0 and at most {MOST_RATE:,.0f} requests/s, not {rate:g}"
        raise InvalidArgumentError(msg)
    return Curve(at_s=(0.0,), rates=(rate,))


def read_curve(path: Path) -> Curve:
    """Rates over time of a CSV file with a line of names, of JSON lines, or of a JSON list.

    Times are ISO 8601 or Unix seconds, in the first column there is of `timestamp`, `time`, `ts`
    and others; rates in `rate`, `rps`, `qps` or `value`. In any order.

    Raises:
        InvalidArgumentError: It cannot be read, is empty, or a line makes no sense; the message
            names the line.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            msg = f"{path} is over {_MOST_BYTES >> 20} MiB; give a rate a minute, or an hour"
            raise InvalidArgumentError(msg)
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InvalidArgumentError(f"{path} cannot be read: {why}") from None
    points: list[tuple[float, float]] = []
    zones: set[bool] = set()
    for where, row in _rows(text, path):
        if len(points) >= _MOST_ROWS:
            msg = f"{path} has over {_MOST_ROWS:,} rows; give a rate a minute, or an hour"
            raise InvalidArgumentError(msg)
        at, is_zoned = _time_of(row, where)
        zones |= set() if is_zoned is None else {is_zoned}
        points.append((at, _rate_of(row, where)))
    if not points:
        raise InvalidArgumentError(f"{path} holds no rates; each row has a time and a rate")
    if len(zones) > 1:
        msg = (
            f"{path} has times with and without a time zone, which cannot be put in order; "
            "write all with an offset, such as 2026-03-29T01:30:00+01:00"
        )
        raise InvalidArgumentError(msg)
    return _curve(sorted(points), path, is_naive=False in zones)


def _curve(points: list[tuple[float, float]], path: Path, *, is_naive: bool) -> Curve:
    at_s = tuple(at for at, _ in points)
    steps = [b - a for a, b in pairwise(at_s)]
    if any(step == 0.0 for step in steps):
        again = datetime.fromtimestamp(at_s[steps.index(0.0)], tz=UTC)
        msg = (
            f"{path} has two rates for {again:%Y-%m-%dT%H:%M:%SZ}; where clocks were set back, "
            "write times with their offset from UTC"
        )
        raise InvalidArgumentError(msg)
    step_s = median(steps) if steps else 3600.0
    notes = []
    if is_naive:
        notes.append("times without a time zone were taken as UTC")
    gaps = [step for step in steps if step > _GAP * step_s]
    if gaps:
        notes.append(
            f"{len(gaps)} gap{'s' if len(gaps) > 1 else ''} in the rates, the longest "
            f"{max(gaps):,.0f} s where {step_s:,.0f} s are usual: a peak in one is not known here"
        )
    if step_s > 300.0:  # noqa: PLR2004  # five minutes
        notes.append(
            f"each rate is an average over {step_s:,.0f} s, in which busier minutes hide: "
            "--peak-factor says by how much"
        )
    rates = tuple(rate for _, rate in points)
    return Curve(at_s=at_s, rates=rates, step_s=step_s, notes=tuple(notes))


def _rows(text: str, path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row, and where it is."""
    start = text.lstrip()[:1]
    try:
        if start == "[":
            for place, row in enumerate(msgspec.json.decode(text), start=1):
                yield f"{path}, entry {place}", _mapping(row, f"{path}, entry {place}")
        elif start == "{":
            for place, line in enumerate(text.splitlines(), start=1):
                if line.strip():
                    where = f"{path}, line {place}"
                    yield where, _mapping(msgspec.json.decode(line), where)
        else:
            reader = csv.DictReader(text.splitlines(), strict=True)
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except (msgspec.DecodeError, csv.Error) as error:
        msg = f"{path} is neither CSV nor JSON: {error}"
        raise InvalidArgumentError(msg) from None


def _mapping(row: object, where: str) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise InvalidArgumentError(f'{where}: not an object such as {{"time": ..., "rate": ...}}')
    return row


def _rate_of(row: Mapping[str, Any], where: str) -> float:
    name = next((one for one in _RATES if one in row), None)
    if name is None:
        msg = f"{where}: no rate; name its column one of {', '.join(_RATES)}"
        raise InvalidArgumentError(msg)
    rate = _number(row[name])
    if rate is None or not 0.0 <= rate <= MOST_RATE:
        msg = f"{where}: '{row[name]}' is no rate from 0 to {MOST_RATE:,.0f} requests/s"
        raise InvalidArgumentError(msg)
    return rate


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def _time_of(row: Mapping[str, Any], where: str) -> tuple[float, bool | None]:
    """Unix time, and whether a time zone was said; None where the time has none by its nature."""
    name = next((one for one in TIMES if one in row), None)
    if name is None:
        msg = f"{where}: no time; name its column one of {', '.join(TIMES)}"
        raise InvalidArgumentError(msg)
    unix = _number(row[name])
    if unix is not None and 0.0 <= unix < 1e11:  # noqa: PLR2004  # the year 5138
        return unix, None
    try:
        moment = datetime.fromisoformat(str(row[name]).strip())
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return zoned.timestamp(), moment.tzinfo is not None
    except (ValueError, OverflowError):
        msg = f"{where}: '{row[name]}' is no time, ISO 8601 or Unix seconds"
        raise InvalidArgumentError(msg) from None
