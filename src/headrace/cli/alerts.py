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
    help="What is wrong now: `headrace alerts`. Silence alerts, test receivers.",
)

_Stream = Annotated[str, option("Only of this stream.", "--stream", shown="all")]


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
        bool, option("Only what fires; exit status 1 if anything does.", "--firing")
    ] = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Print what is wrong now, since when, and what to do; and what was until lately.

    For example:

        headrace alerts

        headrace alerts --firing || echo "call somebody"
    """
    api = plane.connect()
    query = {"endpoint": endpoint, "stream": stream, "state": "firing" if firing else ""}
    alerts = api.get("/api/v1/alerts", **query)["alerts"]
    show_alerts(alerts, endpoint or stream, json=json)
    if firing and alerts:
        raise typer.Exit(FAILED)


def show_alerts(alerts: list[dict[str, Any]], about: str, *, json: bool = False) -> None:
    """Print alerts, and what to do about those that fire."""
    empty = f"nothing is wrong with '{about}'" if about else "nothing is wrong"
    show_document({"alerts": alerts}, alerts, ALERT_COLUMNS, json=json, empty=empty)
    actions = {alert["action"]: alert["name"] for alert in alerts if alert["state"] == "firing"}
    for action, name in () if json else actions.items():
        say(f"{name}: {action}")


@app.command()
def silence(
    endpoint: OneEndpoint = "",
    *,
    alert: Annotated[str, option("Only this one, as HeadraceLatencyP99.", shown="all")] = "",
    stream: _Stream = "",
    severity: Annotated[str, option("Only `page` or `ticket`.", shown="both")] = "",
    for_: Annotated[str, option("How long: 90s, 15m, 12h or 30d.", "--for")] = "",
    until: Annotated[
        str, option("Or its end: 2026-11-25T18:00, in this machine's time zone if none is named.")
    ] = "",
    comment: Annotated[str, option("Why, for others.")] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Send no message that alerts fire, until an end; the alerts themselves are still shown.

    Receivers of an earlier message get the resolved one. An alert that still fires when the silence
    ends is sent then.

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
            raise typer.BadParameter("a silence has an end; write 2h or 30d", param_hint="--for")
    else:
        try:
            body["ends"] = datetime.fromisoformat(until).astimezone().timestamp()
        except (ValueError, OverflowError, OSError):
            message = f"'{until}' is no time; write it as 2026-11-25T18:00"
            raise typer.BadParameter(message, param_hint="--until") from None
    created = plane.connect().post("/api/v1/silences", body)
    line = f"silence {created['id']} of {_about(created)} ends at {clock_text(created['ends'])}"
    show_answer(created, line, json=json)


@app.command()
def silences(*, json: Json = False, plane: ControlPlaneOptions) -> None:
    """List the silences that have not ended."""
    listed = plane.connect().get("/api/v1/silences")["silences"]
    columns: dict[str, Column] = {
        "silence": "id",
        "of": _about,
        "ends": clock_column("ends"),
        "by": "created_by",
        "comment": "comment",
    }
    show_document(listed, listed, columns, json=json, empty="there are no silences")


@app.command()
def unsilence(
    silence: Annotated[str, argument("As `alerts silences` shows it.", metavar="ID")],
    *,
    plane: ControlPlaneOptions,
) -> None:
    """End a silence now: what fires is sent."""
    removed = plane.connect().delete(f"/api/v1/silences/{silence}")
    say(f"silence {removed['id']} of {_about(removed)} is removed")


@app.command("test")
def send_test(
    receiver: Annotated[str, argument("One of the spec's `alerts.receivers`.", shown="all")] = "",
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Send a marked test message to receivers; exit status 1 if one does not take it.

    Each gets the alert HeadraceTest firing and, at once, resolved, every 30 seconds at most.

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
    """Which alerts a silence matches: `ticket alerts of fraud`."""
    kind = silence["alert"] or "alerts"
    stream = f"stream {silence['stream']}" if silence["stream"] else ""
    subject = silence["endpoint"] or stream or "the whole system"
    return " ".join(filter(None, (silence["severity"], kind, "of", subject)))
