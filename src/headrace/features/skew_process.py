"""Process that compares served values with those that training will see, and its report.

`python -m headrace.features.skew_process HOME SERVICE` prints one line of JSON: a `SkewSummary`.
"""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import msgspec

from headrace.core import FailedPreconditionError, HeadraceError, SystemClock
from headrace.features.applied import applied_definitions
from headrace.features.definitions import FeatureView
from headrace.features.served import read_served, served_directory


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewedFeature:
    """A column whose served values differ from training; fields as in `FeatureSkew`."""

    feature: str
    view: str
    differing: int
    rows: int
    causes: Mapping[str, int]
    looks_like: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewSummary:
    """The result of a comparison."""

    service: str

    rows: int
    """Number of rows compared."""

    skewed: tuple[SkewedFeature, ...] = ()

    message: str = ""
    """Why the rows could not be compared."""


_RUNS: Final = 2.0


def default_grace_s(view: FeatureView, now: float) -> float:
    """Return the default grace of a new value until it is online: two runs; 0 unscheduled."""
    schedule = view.schedule
    if schedule is None:
        return 0.0
    if schedule.every_s is not None:
        return _RUNS * schedule.every_s
    from cronsim import CronSim  # noqa: PLC0415  # only needed for cron schedules

    start = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(schedule.timezone))
    moments = CronSim(schedule.cron, start)
    return _RUNS * (-next(moments).timestamp() + next(moments).timestamp())


_NICER = 10


def main(arguments: list[str]) -> int:
    """Run the process; return its exit status."""
    home, service = arguments
    os.nice(_NICER)  # requests come first
    try:
        summary = compare(Path(home), service)
    except HeadraceError as error:
        summary = SkewSummary(service=service, rows=0, message=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
    return 0


def compare(home: Path, service: str) -> SkewSummary:
    """Compare the logged rows of a service in a home.

    Raises:
        HeadraceError: The rows cannot be compared; the message contains the reason.
    """
    feature_service = applied_definitions(home).service(service)
    try:
        samples = read_served(served_directory(home, service), feature_service)
    except FailedPreconditionError:  # no rows were served yet
        return SkewSummary(service=service, rows=0)
    if not samples.rows:
        return SkewSummary(service=service, rows=0)
    # Imported last: without served rows, Polars is not imported.
    from headrace.features.served_offline import offline_rows  # noqa: PLC0415
    from headrace.features.skew import compare_served  # noqa: PLC0415

    now = SystemClock().now()
    grace = {view.name: default_grace_s(view, now) for view in feature_service.views}
    report = compare_served(
        samples, feature_service, offline_rows(samples.rows, feature_service), grace_s=grace
    )
    return SkewSummary(
        service=service,
        rows=report.rows,
        skewed=tuple(
            SkewedFeature(
                feature=feature.feature,
                view=feature.view,
                differing=feature.differing,
                rows=feature.rows,
                causes={str(cause): count for cause, count in feature.causes.items()},
                looks_like=feature.looks_like,
            )
            for feature in report.skewed
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
