from datetime import datetime

import pytest

from headrace.autoscale.decide import scheduled_floor
from headrace.core.spec.scale import ScaleScheduleSpec

OFFICE = ScaleScheduleSpec(
    cron="0 8 * * 1-5", duration_s=3600.0, min_replicas=3, timezone="Europe/Berlin"
)
NIGHT = ScaleScheduleSpec(cron="0 23 * * *", duration_s=7200.0, min_replicas=5, timezone="UTC")


def at(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


@pytest.mark.parametrize(
    ("moment", "floor"),
    [
        ("2026-11-25T07:59:59+01:00", 0),
        ("2026-11-25T08:00:00+01:00", 3),
        ("2026-11-25T08:59:59+01:00", 3),
        ("2026-11-25T09:00:00+01:00", 0),
        ("2026-11-28T08:30:00+01:00", 0),  # a Saturday
        ("2026-07-01T08:30:00+02:00", 3),  # summer time
        ("2026-11-26T00:59:59+00:00", 5),  # past midnight
        ("2026-11-26T01:00:00+00:00", 0),
    ],
)
def test_a_hint_holds_from_its_moment_for_its_duration(moment: str, floor: int) -> None:
    assert scheduled_floor([OFFICE, NIGHT], now=at(moment))[0] == floor


def test_the_largest_hint_holds_and_says_its_line() -> None:
    always = ScaleScheduleSpec(cron="* * * * *", duration_s=60.0, min_replicas=2)

    floor = scheduled_floor([always, OFFICE], now=at("2026-11-25T08:30:00+01:00"))

    assert floor == (3, "0 8 * * 1-5")


def test_a_rare_moment_is_found_however_long_ago_it_was() -> None:
    leap = ScaleScheduleSpec(cron="0 0 29 2 *", duration_s=60.0, min_replicas=2)

    assert scheduled_floor([leap], now=at("2026-11-25T08:30:00+00:00")) == (0, "")
    assert scheduled_floor([leap], now=at("2028-02-29T00:00:30+00:00")) == (2, "0 0 29 2 *")
