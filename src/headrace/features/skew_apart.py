"""Compare what a service served with what training will see, in a process of its own.

`python -m headrace.features.skew_apart HOME SERVICE` prints one line of JSON: a `SkewSummary`.
"""

import os
import sys
from pathlib import Path

import msgspec

from headrace.core import FailedPreconditionError, HeadraceError, SystemClock
from headrace.features.applied import applied_definitions
from headrace.features.schedules import usual_grace_s
from headrace.features.served import read_served, served_directory
from headrace.features.skew_messages import SkewedFeature, SkewSummary

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
