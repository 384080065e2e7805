"""Numbers as people read them."""

from headrace.console import words


def test_a_moment_names_its_zone() -> None:
    assert words.moment(1_764_000_000.0) == "2025-11-24 16:00:00 UTC"
    assert words.moment(None) == "-"
    assert words.machine_moment(1_764_000_000.0) == "2025-11-24T16:00:00Z"
