"""`headrace features get`, `serve-check` and `skew`: features as served."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import math
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import Home, Json, argument, option
from headrace.cli.base.output import (
    NOT_READY,
    Column,
    progress,
    rows_text,
    say,
    show,
    table,
    write_json,
)
from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError, SystemClock
from headrace.core.text import duration_text, number_text
from headrace.features import (
    FeatureReader,
    FeatureStatus,
    applied_definitions,
    compare_served,
    default_online_store,
    open_online_store,
    served_directory,
)
from headrace.features.online_writers import service_readiness
from headrace.features.served import read_served
from headrace.features.served_offline import offline_rows
from headrace.features.skew_process import default_grace_s
from headrace.features.values import microseconds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.features import FeatureService, OnlineStore
    from headrace.features.served import ServedRows
    from headrace.features.skew import FeatureSkew, SkewReport


Service = Annotated[str, argument("The feature service.", shown=False)]
Store = Annotated[
    str,
    option(
        "sqlite:///PATH, redis://HOST:PORT/DB, rediss://, unix:///SOCKET, feast://REPO "
        "or hopsworks://HOST/STORE.",
        "--online-store",
        envvar="features/online/online.db in --home, or the Feast repository's store",
        metavar="URL",
        shown="features/online/online.db in --home, or Feast's",
    ),
]


@contextmanager
def opened(url: str, home: Path) -> "Iterator[OnlineStore]":
    """Yield the online store at `url`; the home's, or Feast's, if that is empty."""
    store = open_online_store(url or default_online_store(home))
    try:
        yield store
    finally:
        store.close()


def plain(value: object) -> object:
    """Return a report as JSON values."""
    import msgspec

    return msgspec.to_builtins(value)


def get(
    service: Service,
    *,
    key: Annotated[
        list[str],
        option(
            "A join key or request column; may be repeated, also for several rows.",
            "--key",
            "-k",
            metavar="NAME=VALUE",
        ),
    ],
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show the feature values for these entities, and their status.

    For example:

        headrace features get fraud -k customer_id=17

        headrace features get fraud -k customer_id=17 -k customer_id=18 --json
    """
    feature_service = applied_definitions(home).service(service)
    with opened(online_store, home) as store:
        keys, values = _keys(key, feature_service)
        rows = FeatureReader(feature_service, store).read(keys, values=values)
    count = len(next(iter(rows.columns.values())))
    if json:
        documents = [
            {
                "features": {name: _value(c[row]) for name, c in rows.columns.items()},
                "statuses": {view: of[row].value for view, of in rows.statuses.items()},
                "ages_s": {view: _value(of[row]) for view, of in rows.ages_s.items()},
                "reasons": {v: of[row] for v, of in rows.reasons.items() if row in of},
            }
            for row in range(count)
        ]
        head = {"service": feature_service.name, "schema_hash": feature_service.schema_hash}
        write_json({**head, "rows": documents})
        return
    of_view = {column.name: column.view.name for column in feature_service.columns}
    lines = [
        (name, str(_text(column[row])), of_view[name], rows.statuses[of_view[name]][row].value)
        for row in range(count)
        for name, column in rows.columns.items()
    ]
    show(table(lines, "feature", "value", "view", "status"))


_VIEW_COLUMNS: Final[dict[str, Column]] = {
    "view": lambda view: view.view,
    "status": lambda view: view.status.value,
    "age": lambda view: duration_text(view.age_s),
    "time to live": lambda view: duration_text(view.ttl_s),
}


def serve_check(
    service: Service,
    *,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Check that each view of a service is materialized and fresh enough to be served.

    Exit status 3 if a view is not. Pushed values are not considered.
    """
    feature_service = applied_definitions(home).service(service)
    with opened(online_store, home) as store:
        views = service_readiness(feature_service, store, SystemClock())
    is_ready = all(view.status is FeatureStatus.PRESENT for view in views)
    if json:
        document = {
            "service": service,
            "schema_hash": feature_service.schema_hash,
            "is_ready": is_ready,
        }
        write_json({**document, "views": [plain(view) for view in views]})
    else:
        show(rows_text(views, _VIEW_COLUMNS))
    if not is_ready:
        raise typer.Exit(NOT_READY)


_KINDS: Final[dict[Datatype, tuple[Callable[[str], object], str]]] = {
    Datatype.INT64: (int, "has whole numbers"),
    Datatype.FP32: (float, "has numbers"),
    Datatype.FP64: (float, "has numbers"),
    Datatype.BOOL: ({"true": True, "false": False}.__getitem__, "is true or false"),
}
"""Parser and name of a value, by datatype; other datatypes are texts."""


def _keys(
    texts: Sequence[str], service: "FeatureService"
) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    """Return the values of each join key, and of each request column, by their definitions."""
    kinds = {entity.join_key: entity.datatype for entity in service.entities}
    of_request = {column.name: column.datatype for column in service.request_columns}
    keys: dict[str, list[object]] = {}
    values: dict[str, list[object]] = {}
    for item in texts:
        name, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{item}' is not NAME=VALUE", param_hint="--key")
        datatype = of_request.get(name, kinds.get(name))
        kind, has = _KINDS.get(datatype, (str, "")) if datatype is not None else (str, "")
        try:
            value = kind(text)
        except (ValueError, KeyError):
            msg = f"{name} {has}, and not '{text}'"
            raise typer.BadParameter(msg, param_hint="--key") from None
        (values if name in of_request else keys).setdefault(name, []).append(value)
    return keys, values


def _text(value: object) -> object:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def _value(value: Any) -> object:  # noqa: ANN401  # of an array
    """Return a JSON value: texts unchanged, NaN and infinity as null."""
    plain = _text(value.item() if hasattr(value, "item") else value)
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def skew(
    service: Annotated[str, argument("The feature service.")],
    *,
    served: Annotated[
        Path | None,
        option(
            "File or directory with served rows.",
            metavar="PATH",
            shown="features/served/SERVICE in --home",
        ),
    ] = None,
    since: Annotated[
        str,
        option(
            "Only rows served from this time on: 2026-11-27T06:00:00Z.", metavar="TIME", shown="all"
        ),
    ] = "",
    grace_s: Annotated[
        float | None,
        option(
            "Maximum delay of a newer value on its way to the online store.",
            "--grace",
            metavar="SECONDS",
            min=0.0,
            shown="two runs of the view's schedule; 0 without a schedule",
        ),
    ] = None,
    tolerance: Annotated[
        float, option("Maximum relative difference of numbers.", min=0.0, max=1.0)
    ] = 1e-6,
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Compare sampled served features with a point-in-time join for the same times.

    Lists each feature that differs with its difference and likely cause. Exit status 3 if a feature
    differs, 1 if there are no samples yet.

    For example:

        headrace features skew fraud

        headrace features skew fraud --since 2026-11-27T06:00:00Z --grace 600 --json
    """
    feature_service = applied_definitions(home).service(service)
    path = served or served_directory(home, service)
    since_us = None
    if since:
        try:
            since_us = microseconds(datetime.fromisoformat(since))
        except (ValueError, InvalidArgumentError):
            msg = f"'{since}' is not a time with a zone; write it as 2026-11-27T06:00:00Z"
            raise typer.BadParameter(msg, param_hint="--since") from None
    if served is None and not path.exists():
        message = (
            f"no samples yet: no lookups of service '{service}' are stored in "
            f"{path}. An endpoint of "
            f"this home must use the service with `sample_ratio` above 0 and receive requests; its "
            "control plane fetches the samples every second (--served PATH reads other files)"
        )
        raise FailedPreconditionError(message)
    samples = read_served(path, feature_service, since_us=since_us)
    if not samples.rows:
        period = f" since {since}" if since else ""
        message = f"no samples yet: {path} has no row that service '{service}' gave{period}"
        raise FailedPreconditionError(message + _left_out(samples))
    with progress(f"comparing {len(samples.rows)} rows"):
        offline = offline_rows(samples.rows, feature_service)
    now = SystemClock().now()
    grace = {
        view.name: default_grace_s(view, now) if grace_s is None else grace_s
        for view in feature_service.views
    }
    report = compare_served(samples, feature_service, offline, grace_s=grace, tolerance=tolerance)
    if json:
        write_json(_document(report))
    else:
        show(rows_text(report.features, _SKEW_COLUMNS))
        count = f"{len(report.skewed)} of {len(report.features)} features differ"
        say(f"{count} in {report.rows} rows{_left_out(samples)}")
    if report.skewed:
        raise typer.Exit(NOT_READY)


def _left_out(samples: "ServedRows") -> str:
    text = f"; {samples.other_schema} have other definitions" if samples.other_schema else ""
    unreadable = samples.unreadable
    return text + (f"; {unreadable} lines are unreadable" if unreadable else "")


def _why(feature: "FeatureSkew") -> str:
    causes = [f"{cause} {count}" for cause, count in feature.causes.items()]
    if feature.lag_s is not None:
        causes.append(f"late by {feature.lag_s:,.0f} s")
    if feature.looks_like:
        causes.append(f"looks like {feature.looks_like}")
    if feature.waiting:
        causes.append(f"{feature.waiting} within the grace period")
    return ", ".join(causes) or "-"


_SKEW_COLUMNS: Final[dict[str, Column]] = {
    "feature": lambda row: row.feature,
    "view": lambda row: row.view,
    "rows that differ": lambda row: f"{row.differing} of {row.rows}",
    "by at most": lambda row: number_text(row.largest_absolute),
    "why": _why,
}


def _document(report: "SkewReport") -> dict[str, Any]:
    document = {**asdict(report), "is_skewed": bool(report.skewed)}
    for feature in document["features"]:
        feature["causes"] = {str(cause): count for cause, count in feature["causes"].items()}
        for example in feature["examples"]:
            example |= {side: _value(example[side]) for side in ("served", "offline")}
    return document
