"""`headrace drift`: inputs and outputs that differ from their reference.

Only the sketch is sent: edges of bins, counts, and the names of categories.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    EndpointName,
    Json,
    ShowByDefault,
    file_option,
    option,
)
from headrace.cli.base.output import Column, rows_text, say, show_answer, styled, write_json
from headrace.cli.base.sketch import sketch
from headrace.client import Client
from headrace.core.text import number_text, percent_text

if TYPE_CHECKING:
    from collections.abc import Sequence


app = CommandGroup(
    cls=ShowByDefault,
    help="Show drift of inputs and outputs: `headrace drift ENDPOINT`.",
)
reference_app = CommandGroup(
    help="Manage the reference that requests are compared with: set, reset."
)
app.add_typer(reference_app, name="reference")
TimeColumn = Annotated[
    str,
    option(
        "Timestamp column, ISO 8601 or seconds since 1970. If the rows span two days, "
        "requests are compared by hour of the day.",
        "--time",
        metavar="COLUMN",
        shown="no timestamps",
    ),
]


@app.command()
def show(
    endpoint: EndpointName,
    *,
    version: Annotated[
        str, option("Only this version.", shown="the version with the most requests")
    ] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show the distance of each feature of an endpoint from its reference, drifted features first.

    For example:

        headrace drift fraud

        headrace drift fraud --json | jq '.features[] | select(.state == "drifted").name'
    """
    from headrace.cli.base.output import show

    path = f"/api/v1/endpoints/{endpoint}/drift"
    document = plane.connect().get(path, version=version)
    if json:
        write_json(document)
        return
    if document["features"]:
        show(rows_text(document["features"], DRIFT_COLUMNS))
    for line in live_lines(document["live"]):
        say(line)
    say(headline(document))


DRIFT_COLUMNS: dict[str, Column] = {
    "feature": lambda feature: (
        f"{feature['name']} ({feature['label']})" if feature["label"] else feature["name"]
    ),
    "role": "role",
    "state": styled("state", {"drifted": "red", "ok": "green"}, "dim"),
    "rows": lambda feature: str(feature["rows"]),
    "PSI": lambda feature: number_text(feature["psi"]),
    "JS": lambda feature: number_text(feature["js"]),
    "KS": lambda feature: number_text(feature["ks"]),
    "evidence": lambda feature: (
        f"{feature['evidence']:.1f} of {feature['needed']:.1f}" if feature["needed"] else "-"
    ),
    "missing": lambda feature: percent_text(feature["missing_ratio"]),
    "range": lambda feature: percent_text(feature["out_of_range_ratio"]),
}


def headline(document: dict[str, Any]) -> str:
    """Return the overall state, and a remedy if there is no reference."""
    name, reference = document["endpoint"], document["reference"]
    match document["state"]:
        case "off":
            return f"{name} has no drift detection: add `drift: {{}}` to it in the spec and apply"
        case "drifted":
            drifted = [feature for feature in document["features"] if feature["state"] == "drifted"]
            lines = [f"{feature['name']} drifted: {feature['why']}" for feature in drifted]
            return "\n".join(lines)
        case "ok":
            return f"no drift from the reference ({_source(reference)})"
    if reference is None or not reference["rows"]:
        have = reference["collected_rows"] if reference else 0
        of = f" of {reference['window_rows']}" if reference else ""
        return (
            f"{name} has {have}{of} rows for its reference; `headrace drift reference set` sets one"
        )
    return f"{name} has a reference ({_source(reference)}); not enough rows to compare yet"


def live_lines(live: "Sequence[dict[str, Any]]") -> list[str]:
    """Return the accuracy from labels, a line per window."""
    spans = {3600: "hour", 86_400: "day", 604_800: "week", 2_592_000: "month"}
    lines = []
    for window in live:
        is_class = window["accuracy"] is not None
        score = f"{window['accuracy']:.1%} right" if is_class else f"{window['mean_error']:.4g} off"
        lines.append(
            f"last {spans[round(window['seconds'])]}: {score}, of {window['rows']} labelled"
        )
    return lines


def _source(reference: dict[str, Any]) -> str:
    description = "of data" if reference["source"] == "data" else "of the first requests"
    covers_s = reference.get("covers_s")  # missing from older servers
    by_hour = ", by the hour of the day" if reference.get("is_hourly") else ""
    over = f", over {covers_s / 3600:.1f} h" if covers_s and not by_hour else ""
    return f"{reference['rows']} rows {description}{by_hour}{over}"


@reference_app.command("set")
def set_(
    endpoint: EndpointName,
    *,
    file: Annotated[Path, file_option("Training data: .csv, .parquet or .npz.", "--input", "-i")],
    columns: Annotated[str, option("Input columns in order: a,b,c.", shown="all")] = "",
    time_column: TimeColumn = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Set the reference data that an endpoint's requests are compared with.

    The data stays on this machine; only bins and counts are sent. With timestamps that span two
    days, requests are compared with rows of the same hour of the day.

    For example:

        headrace drift reference set fraud -i train.parquet --columns age,amount,hour

        headrace drift reference set fraud -i week.csv --time requested_at
    """
    from headrace.cli.base.connection import gateway

    target = plane.target()
    location = gateway(target)
    with Client(location.url, ca_file=location.ca_file, server_name=location.server_name) as client:
        signature = client.signature(endpoint)
    reference = sketch(file, signature, columns, time_column)
    path = f"/api/v1/endpoints/{endpoint}/drift/reference"
    answer = target.management().put(path, reference)
    lines = [f"{endpoint} is compared with {len(reference['features'])} features of {file}"]
    view = answer["reference"] or {}  # empty before a version of the endpoint is served
    if "is_hourly" in view:  # missing from older servers
        lines.append(hours_text(view))
    show_answer(answer, *lines, json=json)


@reference_app.command()
def reset(
    endpoint: EndpointName,
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Reset an endpoint's reference and its counts.

    The new reference is the one pushed with the model version, or else the next requests.

    For example:

        headrace drift reference reset fraud
    """
    answer = plane.connect().delete(f"/api/v1/endpoints/{endpoint}/drift/reference")
    show_answer(answer, f"{endpoint} starts over", json=json)


def hours_text(reference: dict[str, Any]) -> str:
    """Return whether hours of the day are distinguished, and the remedy if they are not."""
    if reference["is_hourly"]:
        return "requests are compared with rows of the same hour of the day (UTC)"
    if reference["covers_s"] is None:
        return "hours of the day are not distinguished: the rows have no timestamps (see `--time`)"
    hours = reference["covers_s"] / 3600
    covered = f"the rows cover {hours:.1f} h; 48 h are needed"
    return f"hours of the day are not distinguished: {covered}"
