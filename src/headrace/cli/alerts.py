"""`headrace alerts`: alerts, silences and test messages."""

# a command imports what it uses, so that each starts fast

from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    Json,
    OneEndpoint,
    ShowByDefault,
    argument,
    option,
    span_s,
)
from headrace.cli.base.output import (
    FAILED,
    Column,
    clock_column,
    clock_text,
    say,
    show_answer,
    show_document,
)
from headrace.core.text import measure_text

_STYLES: Final = {"firing": "bold red", "pending": "yellow", "resolved": "green"}
_TEST_TIMEOUT_S: Final = 300.0

app = CommandGroup(
    no_args_is_help=False,
    cls=ShowByDefault,
    help="Show alerts: `headrace alerts`. Silence alerts, test receivers.",
)

_Stream = Annotated[str, option("Only alerts of this stream.", "--stream", shown="all")]


def _state(alert: dict[str, Any]) -> Text:
    until = alert.get("silenced_until")
    silenced = "" if until is None else f", silenced until {clock_text(until)}"
    return Text(alert["state"] + silenced, style=_STYLES.get(alert["state"], ""))


def _value(alert: dict[str, Any]) -> str:
    value, threshold = (measure_text(alert[key], alert["unit"]) for key in ("value", "threshold"))
    return f"{value} (limit {threshold})"


ALERT_COLUMNS: Final[dict[str, Column]] = {
    "state": _state,
    "severity": "severity",
    "of": lambda alert: (
        alert["endpoint"] or (f"stream {alert['stream']}" if alert.get("stream") else "-")
    ),
    "alert": "name",
    "since": clock_column("since"),
    "value": _value,
    "what": "summary",
}


@app.command()
def show(
    endpoint: OneEndpoint = "",
    *,
    stream: _Stream = "",
    firing: Annotated[
        bool, option("Only firing alerts; exit status 1 if there are any.", "--firing")
    ] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show active and recently resolved alerts with start time and remedy.

    For example:

        headrace alerts

        headrace alerts --firing || echo "page on-call"
    """
    api = plane.connect()
    query = {"endpoint": endpoint, "stream": stream, "state": "firing" if firing else ""}
    alerts = api.get("/api/v1/alerts", **query)["alerts"]
    show_alerts(alerts, endpoint or stream, json=json)
    if firing and alerts:
        raise typer.Exit(FAILED)


def show_alerts(alerts: list[dict[str, Any]], about: str, *, json: bool = False) -> None:
    """Print alerts, with the remedies of firing ones."""
    empty = f"no alerts with '{about}'" if about else "no alerts"
    show_document({"alerts": alerts}, alerts, ALERT_COLUMNS, json=json, empty=empty)
    actions = {alert["action"]: alert["name"] for alert in alerts if alert["state"] == "firing"}
    for action, name in () if json else actions.items():
        say(f"{name}: {action}")


@app.command()
def silence(
    endpoint: OneEndpoint = "",
    *,
    alert: Annotated[str, option("Only this alert, such as HeadraceLatencyP99.", shown="all")] = "",
    stream: _Stream = "",
    severity: Annotated[
        str, option("Only alerts of this severity: `page` or `ticket`.", shown="both")
    ] = "",
    for_: Annotated[str, option("Duration: 90s, 15m, 12h or 30d.", "--for")] = "",
    until: Annotated[
        str,
        option(
            "End time instead of a duration: 2026-11-25T18:00, in this machine's time zone "
            "unless it has an offset."
        ),
    ] = "",
    comment: Annotated[str, option("Reason, shown to other users.")] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Suppress firing notifications until an end time; silenced alerts are still shown.

    Receivers that were notified before still get the resolved notification. An alert that is
    firing when the silence ends is sent then.

    For example:

        headrace alerts silence fraud --for 2h --comment "load test"

        headrace alerts silence --severity ticket --until 2026-11-30T08:00
    """
    if bool(for_) == bool(until):
        raise typer.BadParameter("a silence needs an end: --for 2h, or --until TIME")
    body: dict[str, Any] = {
        "alert": alert,
        "endpoint": endpoint,
        "stream": stream,
        "severity": severity or None,
        "comment": comment,
    }
    if for_:
        body["duration_s"] = span_s(for_, "--for")
        if body["duration_s"] is None:
            raise typer.BadParameter(
                "a silence needs a finite duration; write 2h or 30d", param_hint="--for"
            )
    else:
        try:
            body["ends"] = datetime.fromisoformat(until).astimezone().timestamp()
        except (ValueError, OverflowError, OSError):
            message = f"'{until}' is not a time; write it as 2026-11-25T18:00"
            raise typer.BadParameter(message, param_hint="--until") from None
    created = plane.connect().post("/api/v1/silences", body)
    line = f"silence {created['id']} of {_about(created)} ends at {clock_text(created['ends'])}"
    show_answer(created, line, json=json)


@app.command()
def silences(*, json: Json = False, plane: ControlPlaneOptions) -> None:
    """List active silences."""
    listed = plane.connect().get("/api/v1/silences")["silences"]
    columns: dict[str, Column] = {
        "silence": "id",
        "of": _about,
        "ends": clock_column("ends"),
        "by": "created_by",
        "comment": "comment",
    }
    show_document(listed, listed, columns, json=json, empty="no silences")


@app.command()
def unsilence(
    silence: Annotated[str, argument("Silence id from `headrace alerts silences`.", metavar="ID")],
    *,
    plane: ControlPlaneOptions,
) -> None:
    """Remove a silence; firing alerts are sent."""
    removed = plane.connect().delete(f"/api/v1/silences/{silence}")
    say(f"silence {removed['id']} of {_about(removed)} is removed")


@app.command("test")
def send_test(
    receiver: Annotated[
        str, argument("A receiver from `alerts.receivers` of the spec.", shown="all")
    ] = "",
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Send a test notification to receivers; exit status 1 if a receiver rejects it.

    Each receiver gets the alert HeadraceTest as firing and then as resolved, at most every 30
    seconds.

    For example:

        headrace alerts test on-call
    """
    api = plane.connect()
    answer = api.post("/api/v1/alerts/test", {"receiver": receiver}, timeout_s=_TEST_TIMEOUT_S)
    deliveries = answer["deliveries"]
    columns: dict[str, Column] = {
        "receiver": "receiver",
        "message": lambda delivery: "taken" if delivery["ok"] else "failed",
        "time": lambda delivery: f"{delivery['seconds']:.2f} s",
        "answer": "answer",
    }
    show_document(deliveries, deliveries, columns, json=json)
    if not all(delivery["ok"] for delivery in deliveries):
        raise typer.Exit(FAILED)


def _about(silence: dict[str, Any]) -> str:
    """Return the alerts that a silence matches: `ticket alerts of fraud`."""
    kind = silence["alert"] or "alerts"
    stream = f"stream {silence['stream']}" if silence["stream"] else ""
    subject = silence["endpoint"] or stream or "the whole system"
    return " ".join(filter(None, (silence["severity"], kind, "of", subject)))
