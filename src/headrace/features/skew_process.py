"""Process that compares what a service served with what training will see, and its report.

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
    """A column that was served other than training will see it; as `FeatureSkew`."""

    feature: str
    view: str
    differing: int
    rows: int
    causes: Mapping[str, int]
    looks_like: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewSummary:
    """What `rows` served rows came to; `message`: why they could not be compared."""

    service: str
    rows: int
    skewed: tuple[SkewedFeature, ...] = ()
    message: str = ""


_RUNS: Final = 2.0


def usual_grace_s(view: FeatureView, now: float) -> float:
    """How long a new value may take to come to the online store: two runs; 0 without a schedule."""
    schedule = view.schedule
    if schedule is None:
        return 0.0
    if schedule.every_s is not None:
        return _RUNS * schedule.every_s
    from cronsim import CronSim  # noqa: PLC0415  # only those need it who have a line

    start = datetime.fromtimestamp(now, UTC).astimezone(ZoneInfo(schedule.timezone))
    moments = CronSim(schedule.cron, start)
    return _RUNS * (-next(moments).timestamp() + next(moments).timestamp())


_NICER = 10


def main(arguments: list[str]) -> int:
    """Be the process; its exit status."""
    home, service = arguments
    os.nice(_NICER)  # requests come first
    try:
        summary = compare(Path(home), service)
    except HeadraceError as error:
        summary = SkewSummary(service=service, rows=0, message=str(error))
    sys.stdout.buffer.write(msgspec.json.encode(summary) + b"\n")
    return 0


def compare(home: Path, service: str) -> SkewSummary:
    """What is found in the sample that a home keeps of a service.

    Raises:
        HeadraceError: It cannot be compared; the message says why.
    """
    found = applied_definitions(home).service(service)
    try:
        samples = read_served(served_directory(home, service), found)
    except FailedPreconditionError:  # nothing was served yet
        return SkewSummary(service=service, rows=0)
    if not samples.rows:
        return SkewSummary(service=service, rows=0)
    # Loaded last: where nothing was served, it costs no table library.
    from headrace.features.served_offline import offline_rows  # noqa: PLC0415
    from headrace.features.skew import compare_served  # noqa: PLC0415

    now = SystemClock().now()
    grace = {view.name: usual_grace_s(view, now) for view in found.views}
    report = compare_served(samples, found, offline_rows(samples.rows, found), grace_s=grace)
    return SkewSummary(
        service=service,
        rows=report.rows,
        skewed=tuple(
            SkewedFeature(
                feature=one.feature,
                view=one.view,
                differing=one.differing,
                rows=one.rows,
                causes={str(cause): count for cause, count in one.causes.items()},
                looks_like=one.looks_like,
            )
            for one in report.skewed
        ),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
