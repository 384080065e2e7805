"""Numbers, sizes and durations as people read and write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import text


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "unbounded"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (12_345_678, "12,345,678"),
        (999.6, "1,000"),
        (12.34, "12.3"),
        (0.1 + 0.2, "0.3"),
        (0.00471, "0.00471"),
        (-0.5, "-0.5"),
        (-1e-12, "0"),
        (100.0, "100"),
        (1e18, "1e+18"),
    ],
)
def test_a_number_has_the_digits_that_count(value: float | None, written: str) -> None:
    assert text.number_text(value) == written


@given(st.floats(1e-6, 1e9))
def test_a_written_number_is_within_half_a_percent(value: float) -> None:
    assert float(text.number_text(value).replace(",", "")) == pytest.approx(value, rel=0.00501)


@pytest.mark.parametrize(
    ("ratio", "written"), [(None, "-"), (0.0512, "5.12 %"), (0.000012, "0.0012 %"), (0.0, "0 %")]
)
def test_a_ratio_is_written_in_percent(ratio: float | None, written: str) -> None:
    assert text.percent_text(ratio) == written


@pytest.mark.parametrize(
    ("size", "written"),
    [
        (None, "-"),
        (0, "0 B"),
        (999, "999 B"),
        (1500, "1.5 kB"),
        (25_918, "25.9 kB"),
        (999_999, "1 MB"),
        (130e6, "130 MB"),
        (3e15, "3,000 TB"),
    ],
)
def test_a_size_has_a_decimal_unit(size: float | None, written: str) -> None:
    assert text.bytes_text(size) == written


@pytest.mark.parametrize(
    ("seconds", "written"),
    [
        (None, "-"),
        (math.inf, "-"),
        (0.0, "0 s"),
        (2.9e-9, "2.9 ns"),
        (0.00085, "850 µs"),
        (0.9999e-3, "1 ms"),
        (0.0621, "62.1 ms"),
        (1.234, "1.23 s"),
        (90, "90 s"),
        (2880, "48 min"),
        (7920, "2.2 h"),
        (345_600, "4 d"),
        (8_640_000, "100 d"),
    ],
)
def test_a_duration_has_the_unit_that_suits(seconds: float | None, written: str) -> None:
    assert text.duration_text(seconds) == written


@pytest.mark.parametrize("seconds", [0.0, -0.0, math.nan])
def test_a_duration_without_a_size_is_in_seconds(seconds: float) -> None:
    assert text.duration_unit(seconds) == ("s", 1.0)


@pytest.mark.parametrize(
    ("seconds", "written", "coarse"),
    [
        (-1, "0 s", "less than a minute"),
        (59, "59 s", "less than a minute"),
        (250, "4 min 10 s", "4 min"),
        (7260, "2 h 1 min", "2 h"),
        (93_600, "1 d 2 h", "1 d"),
    ],
)
def test_a_span_has_its_two_largest_units_or_one(seconds: float, written: str, coarse: str) -> None:
    assert text.span(seconds) == written
    assert text.coarse_span(seconds) == coarse


@pytest.mark.parametrize(
    ("value", "unit", "written"),
    [
        (0.0144, "ratio", "1.44 %"),
        (0.31, "s", "310 ms"),
        (13 * 86_400.0, "s", "13 d"),
        (3, "replicas", "3"),
        (None, "jobs", "-"),
    ],
)
def test_a_measure_of_an_alert_is_written_in_its_unit(
    value: float | None, unit: str, written: str
) -> None:
    assert text.measure_text(value, unit) == written


@pytest.mark.parametrize(
    ("unit", "own", "effect"),
    [
        ("ratio difference", "5 %", "+5 points"),
        ("ratio", "5 %", "5 %"),
        ("times", "50 ms", "x0.05"),
        ("reward", "0.05", "+0.05"),
    ],
)
def test_a_metric_of_a_rollout_is_written_in_its_unit(unit: str, own: str, effect: str) -> None:
    assert text.metric_text(0.05, unit) == own
    assert text.effect_text(0.05, unit) == effect
    assert text.bound_text(0.05, unit) == effect
    assert text.bound_text(None, unit) == "any"
    assert text.effect_text(None, unit) == "-"


@pytest.mark.parametrize(
    ("written", "seconds"),
    [
        ("50ms", 0.05),
        ("7us", 7e-6),
        ("3", 3.0),
        ("1.5h", 5400.0),
        ("2w", 1_209_600.0),
        ("0s", None),
        ("-1s", None),
        ("inf", None),
        ("soon", None),
    ],
)
def test_a_duration_is_read_or_refused(written: str, seconds: float | None) -> None:
    assert text.duration_s(written) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize(
    ("written", "size"),
    [
        ("1", 1),
        ("512MiB", 512 << 20),
        ("1.5 GB", 1_500_000_000),
        ("2g", 2 << 30),
        ("0", None),
        ("0.1b", None),
        ("nan", None),
        ("inf gb", None),
        ("1e400", None),
        ("MiB", None),
        ("3 TB", None),
        ("-1", None),
    ],
)
def test_a_size_is_read_or_refused(written: str, size: int | None) -> None:
    assert text.size_bytes(written) == size


def test_a_moment_names_its_zone() -> None:
    assert text.moment_text(1_764_000_000.0) == "2025-11-24 16:00:00 UTC"
    assert text.moment_text(None) == "-"
    assert text.iso_text(1_764_000_000.0) == "2025-11-24T16:00:00Z"
