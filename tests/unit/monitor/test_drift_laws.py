"""How often undrifted streams are named, and how fast drifted ones, by many seeded streams.

`docs/how-to/drift.md` has the figures. `FULL` streams of each case run in `make test SUITE=long`.
"""

from collections.abc import Callable

import numpy as np
import pytest

from headrace.core import Array
from tests.unit.monitor.streams import (
    DAY_S,
    autoregressive,
    data_of,
    rows_until_named,
    swing,
    window_of,
)

pytestmark = [pytest.mark.long, pytest.mark.slow]

FULL = 100
Stream = Callable[[np.random.Generator], int | None]


def first_window(coefficient: float, shift: float = 0.0, rows: int = 10_000) -> Stream:
    def play(random: np.random.Generator) -> int | None:
        table = autoregressive(2000 + rows, coefficient, random)
        return rows_until_named(window_of(table[:2000]), table[2000:] + shift)

    return play


def given_data(
    coefficient: float, shift: float = 0.0, rows: int = 10_000, *, in_order: bool = False
) -> Stream:
    """10,000 rows without times: drawn at random, or as they followed each other."""

    def play(random: np.random.Generator) -> int | None:
        reference = autoregressive(10_000, coefficient if in_order else 0.0, random)
        live = autoregressive(rows, coefficient, random) + shift
        return rows_until_named(data_of(reference), live)

    return play


def daily_swing(rows_a_day: int, coefficient: float, shift: float = 0.0) -> Stream:
    """0.5 standard deviations, two whole days of reference; two more days, from any hour on."""

    def play(random: np.random.Generator) -> int | None:
        times = np.arange(2 * rows_a_day) * DAY_S / rows_a_day
        later = 9 * DAY_S + random.uniform(0.0, DAY_S) + times

        def rows(when: Array) -> Array:
            made: Array = autoregressive(len(when), coefficient, random) + swing(when, 0.5)
            return made

        return rows_until_named(data_of(rows(times), times), rows(later) + shift, later)

    return play


def named(stream: Stream, streams: int = FULL) -> list[int]:
    """Of so many streams the rows until they were named, the fastest first."""
    played = [stream(np.random.default_rng([17, seed])) for seed in range(streams)]
    return sorted(rows for rows in played if rows is not None)


@pytest.mark.parametrize(
    "stream",
    [
        first_window(0.0),
        first_window(0.9),
        given_data(0.0),
        given_data(0.9),
        given_data(0.9, in_order=True),
        daily_swing(10_000, 0.0),
        daily_swing(10_000, 0.9),
    ],
    ids=[
        "independent, window",
        "dependent, window",
        "independent, data",
        "dependent, data",
        "dependent, data in order",
        "swing",
        "swing, dependent",
    ],
)
def test_undrifted_streams_are_named_in_at_most_five_of_a_hundred(stream: Stream) -> None:
    assert len(named(stream)) <= FULL * 5 // 100


@pytest.mark.parametrize(
    ("stream", "within"),
    [
        (first_window(0.0, 1.0), 400),
        (first_window(0.0, 0.5, 30_000), 12_000),
        (given_data(0.0, 1.0), 400),
        (given_data(0.0, 0.5), 3000),
        (given_data(0.9, 1.0), 4000),
        (daily_swing(10_000, 0.0, 1.0), 1500),
    ],
    ids=["window 1", "window 0.5", "data 1", "data 0.5", "dependent 1", "swing 1"],
)
def test_a_drift_is_named_within_these_rows_in_nine_of_ten_streams(
    stream: Stream, within: int
) -> None:
    rows = named(stream, 40)

    assert len(rows) >= 36
    assert rows[35] <= within
