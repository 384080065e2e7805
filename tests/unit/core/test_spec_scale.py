import pytest
from pydantic import ValidationError

from headrace.core.spec.base import parsed
from headrace.core.spec.scale import AutoscaleSpec, ScaleScheduleSpec


@pytest.mark.parametrize(
    ("cron", "timezone", "said"),
    [
        ("61 8 * * 1-5", "UTC", "is not a valid cron expression"),
        ("* * * * * *", "UTC", "needs five fields"),
        ("0 8 * * 1-5", "Mars/Olympus", "the time zone 'Mars/Olympus' does not exist"),
        ("0 8 * * 1-5", "../etc/passwd", "does not exist"),
    ],
)
def test_a_schedule_that_cannot_be_read_is_refused(cron: str, timezone: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ScaleScheduleSpec(cron=cron, timezone=timezone, duration_s=60.0, min_replicas=1)


def test_the_autoscaler_is_told_the_schedule_and_the_slo() -> None:
    spec = parsed(
        AutoscaleSpec,
        {
            "max_replicas": 8,
            "schedule": [
                {
                    "cron": "0 8 * * 1-5",
                    "duration_s": 3600.0,
                    "min_replicas": 3,
                    "timezone": "Europe/Berlin",
                }
            ],
        },
    )

    hint = ScaleScheduleSpec(
        cron="0 8 * * 1-5", duration_s=3600.0, min_replicas=3, timezone="Europe/Berlin"
    )
    assert spec == AutoscaleSpec(max_replicas=8, schedule=(hint,))


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"min_replicas": 5}, "min_replicas 5 is above max_replicas 4"),
        ({"panic_window_s": 61.0}, "panic_window_s 61 is above stable_window_s"),
        (
            {"schedule": [{"cron": "0 8 * * *", "duration_s": 60.0, "min_replicas": 9}]},
            "a schedule needs 9 replicas, but max_replicas is 4",
        ),
    ],
)
def test_bounds_that_disagree_are_refused(document: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        parsed(AutoscaleSpec, document)
