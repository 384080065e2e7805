"""Played streams find what they are meant to find, and the same seed plays the same."""

from headrace.core.drift_settings import DriftSettings
from headrace.monitor.drift_simulate import Plan, play


def test_a_large_shift_is_found_in_all_streams() -> None:
    plan = Plan(shift=2.0, features=2, most_rows=300)

    outcome = play(plan, DriftSettings(), streams=4)

    assert (outcome.found, outcome.wrong) == (4, 0)
    assert outcome.within is not None
    assert outcome.within <= 150
    assert play(plan, DriftSettings(), streams=4) == outcome


def test_without_a_shift_nothing_is_found() -> None:
    outcome = play(Plan(shift=0.0, features=2, most_rows=500), DriftSettings(), streams=3)

    assert (outcome.found, outcome.median_rows, outcome.within, outcome.wrong) == (0, None, None, 0)


def test_rows_before_the_drift_do_not_count() -> None:
    plan = Plan(shift=2.0, features=1, clean_rows=500, most_rows=500)

    outcome = play(plan, DriftSettings(), streams=2)

    assert outcome.found == 2
    assert outcome.median_rows is not None
    assert outcome.median_rows <= 300
