"""Numbers as people read them."""

import pytest

from headrace.console import words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (float("inf"), "-"),
        (0.0, "0"),
        (1234.5, "1,234"),
        (12.34, "12.3"),
        (0.00123, "0.00123"),
        (-0.5, "-0.5"),
        (100.0, "100"),
    ],
)
def test_a_number_has_the_digits_that_it_is_worth(value: float | None, text: str) -> None:
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (0.00085, "850 µs"), (0.0123, "12.3 ms"), (1.5, "1.5 s"), (0.0, "0 µs")],
)
def test_a_latency_has_the_unit_that_is_read_best(value: float | None, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "-"), (12, "12 B"), (1536, "1.5 KiB"), (5 << 30, "5 GiB"), (3 << 40, "3 TiB")],
)
def test_a_size_has_the_unit_that_is_read_best(value: float | None, text: str) -> None:
    assert words.size(value) == text


@pytest.mark.parametrize(
    ("value", "text", "short"),
    [
        (-1, "0 s", "less than a minute"),
        (59, "59 s", "less than a minute"),
        (250, "4 min 10 s", "4 min"),
        (7260, "2 h 1 min", "2 h"),
        (93_600, "1 d 2 h", "1 d"),
    ],
)
def test_a_span_has_two_units_or_one(value: float, text: str, short: str) -> None:
    assert words.span(value) == text
    assert words.about(value) == short


def test_a_moment_names_its_zone() -> None:
    assert words.moment(1_764_000_000.0) == "2025-11-24 16:00:00 UTC"
    assert words.moment(None) == "-"
    assert words.machine_moment(1_764_000_000.0) == "2025-11-24T16:00:00Z"


@pytest.mark.parametrize(
    ("unit", "own", "effect"),
    [
        ("ratio difference", "5 %", "+5 points"),
        ("ratio", "5 %", "5 %"),
        ("times", "50 ms", "0.05-fold"),
        ("reward", "0.05", "+0.05"),
    ],
)
def test_a_metric_is_told_in_its_unit(unit: str, own: str, effect: str) -> None:
    assert words.own_value(0.05, unit) == own
    assert words.effect(0.05, unit) == effect
    assert words.bound(None, unit) == "any"
    assert words.effect(None, unit) == "-"


@pytest.mark.parametrize(
    ("unit", "text"),
    [("s", "310 ms"), ("ratio", "31 %"), ("replicas", "0.31 replicas"), ("", "0.31")],
)
def test_what_an_alert_measured_has_its_unit(unit: str, text: str) -> None:
    assert words.measure(0.31, unit) == text


def test_a_distance_has_three_decimals() -> None:
    assert [words.score(value) for value in (0.14249, 0.0, None)] == ["0.142", "0.000", "-"]
