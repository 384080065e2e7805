"""`headrace features get` and `serve-check`: the features that a request would get."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import NOT_READY
from headrace.cli.features_store import Service, Store, opened, plain
from headrace.cli.options import DEFAULT_HOME, Home, Json
from headrace.core.text import duration_text

if TYPE_CHECKING:
    from headrace.core import Datatype
    from headrace.features import FeatureRows, FeatureService


def get(
    service: Service,
    *,
    key: Annotated[
        list[str],
        typer.Option(
            "--key",
            "-k",
            metavar="NAME=VALUE",
            help="A join key or request column; again for more of them, and for more rows.",
            show_default=False,
        ),
    ],
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Show what a request with these entities would get, and how it was found.

    For example:

        headrace features get fraud -k customer_id=17

        headrace features get fraud -k customer_id=17 -k customer_id=18 --json
    """
    from headrace.cli.output import show, table, write_json
    from headrace.features import FeatureReader, applied_definitions

    found = applied_definitions(home).service(service)
    with opened(online_store, home) as store:
        keys, values = _keys(key, found)
        rows = FeatureReader(found, store).read(keys, values=values)
    if json:
        write_json(_documents(rows, found))
        return
    of_view = {column.name: column.view.name for column in found.columns}
    lines = [
        (name, _text(value), of_view[name], rows.statuses[of_view[name]][row].value)
        for row in range(_count(rows))
        for name, value in ((name, column[row]) for name, column in rows.columns.items())
    ]
    show(table(lines, "feature", "value", "view", "status"))


def serve_check(
    service: Service,
    *,
    online_store: Store = "",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Say whether each view of a service was materialized, and lately enough to be served.

    Exit status 3 if one was not. Values that were pushed are not counted.
    """
    from headrace.cli.output import show, table, write_json
    from headrace.core import SystemClock
    from headrace.features import Status, applied_definitions, service_readiness

    found = applied_definitions(home).service(service)
    with opened(online_store, home) as store:
        views = service_readiness(found, store, SystemClock())
    is_ready = all(one.status is Status.PRESENT for one in views)
    if json:
        document = {"service": service, "schema_hash": found.schema_hash, "is_ready": is_ready}
        write_json({**document, "views": [plain(one) for one in views]})
    else:
        lines = [
            (one.view, one.status.value, duration_text(one.age_s), duration_text(one.ttl_s))
            for one in views
        ]
        show(table(lines, "view", "status", "age", "time to live"))
    if not is_ready:
        raise typer.Exit(NOT_READY)


def _keys(
    given: Sequence[str], service: "FeatureService"
) -> tuple[dict[str, list[object]], dict[str, list[object]]]:
    """The values of each join key, and of each request column, as they are defined."""
    kinds = {entity.join_key: entity.datatype for entity in service.entities}
    of_request = {column.name: column.datatype for column in service.request_columns}
    keys: dict[str, list[object]] = {}
    values: dict[str, list[object]] = {}
    for item in given:
        name, equals, text = item.partition("=")
        if not equals:
            raise typer.BadParameter(f"'{item}' is no NAME=VALUE", param_hint="--key")
        value = _typed(name, text, of_request.get(name, kinds.get(name)))
        (values if name in of_request else keys).setdefault(name, []).append(value)
    return keys, values


def _typed(name: str, text: str, datatype: "Datatype | None") -> object:
    from headrace.core import Datatype

    match datatype:
        case Datatype.INT64:
            kind: type = int
            has = "whole numbers"
        case Datatype.FP32 | Datatype.FP64:
            kind, has = float, "numbers"
        case Datatype.BOOL:
            if text not in {"true", "false"}:
                msg = f"{name} is true or false, and not '{text}'"
                raise typer.BadParameter(msg, param_hint="--key")
            return text == "true"
        case _:
            return text
    try:
        value: object = kind(text)
    except ValueError:
        msg = f"{name} has {has}, and '{text}' is none"
        raise typer.BadParameter(msg, param_hint="--key") from None
    return value


def _documents(rows: "FeatureRows", service: "FeatureService") -> dict[str, Any]:
    return {
        "service": service.name,
        "schema_hash": service.schema_hash,
        "rows": [
            {
                "features": {name: _value(c[row]) for name, c in rows.columns.items()},
                "statuses": {view: of[row].value for view, of in rows.statuses.items()},
                "ages_s": {view: _value(of[row]) for view, of in rows.ages_s.items()},
                "reasons": {v: of[row] for v, of in rows.reasons.items() if row in of},
            }
            for row in range(_count(rows))
        ],
    }


def _count(rows: "FeatureRows") -> int:
    return len(next(iter(rows.columns.values())))


def _value(value: Any) -> object:  # noqa: ANN401  # of an array
    """As JSON has it: text where it is, NaN and infinity as null."""
    import math

    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, bytes):
        return plain.decode(errors="backslashreplace")
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _text(value: object) -> str:
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else str(value)
