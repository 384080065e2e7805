"""Numbers as people read them."""

import pytest

from headrace.console import words


def test_a_moment_names_its_zone() -> None:
    assert words.moment(1_764_000_000.0) == "2025-11-24 16:00:00 UTC"
    assert words.moment(None) == "-"
    assert words.machine_moment(1_764_000_000.0) == "2025-11-24T16:00:00Z"


@pytest.mark.parametrize(
    ("unit", "text"),
    [("s", "310 ms"), ("ratio", "31 %"), ("replicas", "0.31 replicas"), ("", "0.31")],
)
def test_what_an_alert_measured_has_its_unit(unit: str, text: str) -> None:
    assert words.measure(0.31, unit) == text
