"""A new value may take two runs of its view's schedule to come to the online store."""

from dataclasses import replace
from pathlib import Path

import pytest

from headrace.features import MaterializeSchedule
from headrace.features.skew_process import default_grace_s
from tests.unit.features.tables import at, view

VIEW = view(Path("none"))


@pytest.mark.parametrize(
    ("schedule", "grace_s"),
    [
        (None, 0.0),
        (MaterializeSchedule(every_s=300.0), 600.0),
        (MaterializeSchedule(cron="*/5 * * * *"), 600.0),
        (MaterializeSchedule(cron="0 8 * * *", timezone="Europe/Berlin"), 172_800.0),
    ],
)
def test_the_grace_is_two_runs(schedule: MaterializeSchedule | None, grace_s: float) -> None:
    assert default_grace_s(replace(VIEW, schedule=schedule), at(30).timestamp()) == grace_s
