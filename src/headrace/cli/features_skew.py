"""`headrace features skew`: served features beside those that a training join gives."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import NOT_READY
from headrace.cli.options import DEFAULT_HOME, Home, Json
from headrace.core.text import number_text

if TYPE_CHECKING:
    from headrace.features import FeatureSkew, ServedRows, SkewReport


def skew(
    service: Annotated[str, typer.Argument(help="The feature service.", show_default=False)],
    *,
    served: Annotated[
        Path | None,
        typer.Option(
            "--served",
            metavar="PATH",
            help="A file of served rows, or a directory of them.",
            show_default="features/served/SERVICE in --home",
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(
            "--since",
            metavar="TIME",
            help="Only what was served from then on: 2026-11-27T06:00:00Z.",
            show_default="all",
        ),
    ] = "",
    grace_s: Annotated[
        float | None,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0.0,
            help="How long a newer value may take to come to the online store.",
            show_default="two runs of the view's schedule; 0 without one",
        ),
    ] = None,
    tolerance: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="How much numbers may differ, of the larger one."),
    ] = 1e-6,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Compare a sample of what was served with what a join says of the same moments.

    Names each feature that differs, how much, and why as far as that can be told. Exit status 3 if
    one does, 1 if there are no samples yet.

    For example:

        headrace features skew fraud

        headrace features skew fraud --since 2026-11-27T06:00:00Z --grace 600 --json
    """
    from headrace.cli.output import progress, say, write_json
    from headrace.core import FailedPreconditionError, SystemClock
    from headrace.features import (
        applied_definitions,
        compare_served,
        offline_rows,
        read_served,
        served_directory,
        usual_grace_s,
    )

    found = applied_definitions(home).service(service)
    path = served or served_directory(home, service)
    since_us = _since(since)
    if served is None and not path.exists():
        message = (
            f"no samples yet: no look-up of service '{service}' was kept in {path}. An endpoint of "
            f"this home has to use the service with `sample_ratio` above 0 and get requests; its "
            "control plane fetches the samples every second (--served PATH reads other files)"
        )
        raise FailedPreconditionError(message)
    samples = read_served(path, found, since_us=since_us)
    if not samples.rows:
        period = f" since {since}" if since else ""
        message = f"no samples yet: {path} has no row that service '{service}' gave{period}"
        raise FailedPreconditionError(message + _left_out(samples))
    with progress(f"comparing {len(samples.rows)} rows"):
        offline = offline_rows(samples.rows, found)
    now = SystemClock().now()
    grace = {
        view.name: usual_grace_s(view, now) if grace_s is None else grace_s for view in found.views
    }
    report = compare_served(samples, found, offline, grace_s=grace, tolerance=tolerance)
    if json:
        write_json(_document(report))
    else:
        _show(report)
        count = f"{len(report.skewed)} of {len(report.features)} features differ"
        say(f"{count} in {report.rows} rows{_left_out(samples)}")
    if report.skewed:
        raise typer.Exit(NOT_READY)


def _left_out(samples: "ServedRows") -> str:
    told = f"; {samples.other_schema} are of other definitions" if samples.other_schema else ""
    unreadable = samples.unreadable
    return told + (f"; {unreadable} lines cannot be read" if unreadable else "")


def _since(text: str) -> int | None:
    from datetime import datetime

    from headrace.core import InvalidArgumentError
    from headrace.features.values import microseconds

    if not text:
        return None
    try:
        return microseconds(datetime.fromisoformat(text))
    except (ValueError, InvalidArgumentError):
        msg = f"'{text}' is no time with a zone; write it as 2026-11-27T06:00:00Z"
        raise typer.BadParameter(msg, param_hint="--since") from None


def _show(report: "SkewReport") -> None:
    from headrace.cli.output import show, table

    lines = [
        (
            one.feature,
            one.view,
            f"{one.differing} of {one.rows}",
            number_text(one.largest_absolute),
            _reasons(one),
        )
        for one in report.features
    ]
    show(table(lines, "feature", "view", "rows that differ", "by at most", "why"))


def _reasons(one: "FeatureSkew") -> str:
    told = [f"{cause} {count}" for cause, count in one.causes.items()]
    if one.lag_s is not None:
        told.append(f"late by {one.lag_s:,.0f} s")
    if one.looks_like:
        told.append(f"looks like {one.looks_like}")
    if one.waiting:
        told.append(f"{one.waiting} within the grace")
    return ", ".join(told) or "-"


def _document(report: "SkewReport") -> dict[str, Any]:
    return {
        "service": report.service,
        "rows": report.rows,
        "since": report.since,
        "until": report.until,
        "other_schema": report.other_schema,
        "unreadable": report.unreadable,
        "is_skewed": bool(report.skewed),
        "features": [
            {
                "feature": one.feature,
                "view": one.view,
                "rows": one.rows,
                "differing": one.differing,
                "waiting": one.waiting,
                "share_ratio": one.share_ratio,
                "largest_absolute": one.largest_absolute,
                "median_relative": one.median_relative,
                "causes": {str(cause): count for cause, count in one.causes.items()},
                "lag_s": one.lag_s,
                "looks_like": one.looks_like,
                "examples": [
                    {
                        "at": example.at,
                        "keys": dict(example.keys),
                        "served": _value(example.served),
                        "offline": _value(example.offline),
                        "cause": str(example.cause),
                    }
                    for example in one.examples
                ],
            }
            for one in report.features
        ],
    }


def _value(value: object) -> object:
    import math

    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return None if isinstance(value, float) and not math.isfinite(value) else value
