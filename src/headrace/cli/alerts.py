"""`headrace alerts`: what is wrong now."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.failures import FAILED
from headrace.cli.options import DEFAULT_HOME, Home, Json, Server

if TYPE_CHECKING:
    from rich.text import Text

_STYLES: Final = {"firing": "bold red", "pending": "yellow", "resolved": "green"}


def alerts(
    endpoint: Annotated[
        str, typer.Argument(help="Only of this endpoint.", show_default="all")
    ] = "",
    *,
    stream: Annotated[
        str, typer.Option("--stream", help="Only of this stream.", show_default="all")
    ] = "",
    firing: Annotated[
        bool, typer.Option("--firing", help="Only what fires; exit status 1 if anything does.")
    ] = False,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print what is wrong now, since when, and what to do; and what was until lately.

    For example:

        headrace alerts

        headrace alerts --firing || echo "call somebody"
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import write_json

    api = connect(server, home)
    state = "firing" if firing else ""
    asked = {"endpoint": endpoint, "stream": stream, "state": state}
    found = api.get("/api/v1/alerts", **asked)["alerts"]
    if json:
        write_json({"alerts": found})
    else:
        _show(found, endpoint or stream)
    if firing and found:
        raise typer.Exit(FAILED)


def _show(found: list[dict[str, Any]], about: str) -> None:
    from headrace.cli.output import say, show, table

    if not found:
        say(f"nothing is wrong with '{about}'" if about else "nothing is wrong")
        return
    rows = [_row(alert) for alert in found]
    show(table(rows, "state", "severity", "of", "alert", "since", "value", "what"))
    actions = {alert["action"]: alert["name"] for alert in found if alert["state"] == "firing"}
    for action, name in actions.items():
        say(f"{name}: {action}")


def _row(alert: dict[str, Any]) -> "list[str | Text]":
    from rich.text import Text

    from headrace.cli.rollout_table import clock_text
    from headrace.monitor.alert_kinds import value_text

    unit = alert["unit"]
    value, threshold = (value_text(alert[key], unit) for key in ("value", "threshold"))
    return [
        Text(alert["state"], style=_STYLES.get(alert["state"], "")),
        alert["severity"],
        alert["endpoint"] or (f"stream {alert['stream']}" if alert.get("stream") else "-"),
        alert["name"],
        clock_text(alert["since"]),
        f"{value} (limit {threshold})",
        alert["summary"],
    ]
