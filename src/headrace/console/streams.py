"""Pages of streams: all streams, one stream over time, and its commands."""

from collections.abc import Sequence
from functools import partial
from typing import Final

from headrace.console.charts import Chart, ChartLine, line_chart
from headrace.console.forms import confirmation
from headrace.console.view import (
    PageRequest,
    PageView,
    Params,
    RefusedError,
    cut,
    may_operate_system,
)
from headrace.control.api.events import EventList
from headrace.control.api.streams import StreamHistory, StreamList, StreamPointView
from headrace.control.streams.status import StreamView
from headrace.core.text import duration_text, number_text

SPANS: Final = {"900": "15 min", "3600": "1 h"}
VERBS: Final = {"pause": "Pause", "resume": "Resume"}
CONSEQUENCES: Final = {
    "pause": "Its workers stop reading and keep their offsets. New records wait in the source "
    "until the stream is resumed, also after a restart.",
    "resume": "Its workers continue at their offsets. A worker that stopped at a record "
    "retries that record.",
}
LOOKS: Final = {
    "running": "ok",
    "paused": "idle",
    "starting": "idle",
    "failed": "failing",
    "stalled": "failing",
}
_SIZE: Final = 50
_POINTS: Final = 90
_EVENTS: Final = 300
_SHOWN_EVENTS: Final = 8
_NOT_FOUND: Final = 404


async def streams(request: PageRequest) -> PageView:
    """Return the page of all streams, problems first."""
    all_streams = (await request.visitor.get("/api/v1/streams", StreamList)).streams
    ordered = sorted(
        (stream for stream in all_streams if request.matches_search(stream.name)),
        key=lambda stream: (stream.is_well, stream.name),
    )
    rows, pages = cut(ordered, page=request.page, size=_SIZE)
    unhealthy = [stream for stream in all_streams if not stream.is_well]
    return PageView(
        template="streams.html",
        title="Streams",
        section="streams",
        announcement=summary_text(all_streams),
        values={
            "rows": rows,
            "pages": pages,
            "unhealthy": unhealthy,
            "is_empty": not all_streams,
            "looks": LOOKS,
        },
    )


async def stream(request: PageRequest) -> PageView:
    """Return the page of one stream."""
    name, now = request.names["stream"], request.now
    span_s = request.word("span", *SPANS)
    ask = request.visitor
    view = await ask.get(f"/api/v1/streams/{name}", StreamView)
    parameters: Params = {"since_s": span_s, "points": _POINTS}
    history = await ask.get(f"/api/v1/streams/{name}/history", StreamHistory, parameters)
    events = await ask.get("/api/v1/events", EventList, {"limit": _EVENTS})
    own_events = [event for event in reversed(events.events) if event.data.get("stream") == name]
    return PageView(
        template="stream.html",
        title=f"Stream {name}",
        section="streams",
        announcement=f"Stream {name} is {view.state}.",
        values={
            "stream": view,
            "charts": charts_of(history.points, now),
            "events": own_events[:_SHOWN_EVENTS],
            "verb": "resume" if view.paused else "pause",
            "verbs": VERBS,
            "may_operate": may_operate_system(request.caller),
            "looks": LOOKS,
            "span": span_s,
            "spans": SPANS,
        },
    )


async def confirm(request: PageRequest) -> PageView:
    """Return the confirmation page of a command."""
    verb = _verb_of(request.names["verb"])
    name = request.names["stream"]
    view = await request.visitor.get(f"/api/v1/streams/{name}", StreamView)
    return confirmation(
        request,
        title=f"{VERBS[verb]} stream {name}?",
        consequence=CONSEQUENCES[verb],
        label=VERBS[verb],
        crumbs=[("/streams", "Streams"), (f"/streams/{name}", name)],
        section="streams",
        lead=(
            (LOOKS.get(view.state, "warning"), view.state),
            f"{number_text(view.lag_records)} records of lag",
        ),
    )


async def send_command(request: PageRequest) -> str:
    """Send a command to a stream; return the page to show next.

    Raises:
        RefusedError: The API returns an error.
    """
    name, verb = request.names["stream"], _verb_of(request.names["verb"])
    await request.change(f"/api/v1/streams/{name}/{verb}", {})
    return f"/streams/{name}"


def summary_text(streams: Sequence[StreamView]) -> str:
    """Return the state of the streams as a sentence."""
    if not streams:
        return "No streams yet."
    unhealthy = [stream for stream in streams if not stream.is_well]
    named = ", ".join(f"stream {stream.name} is {stream.state}" for stream in unhealthy[:5])
    return f"{named}." if named else "All streams are healthy."


def charts_of(points: Sequence[StreamPointView], now: float) -> list[Chart]:
    """Return charts of lag, answers and dead letters over time."""
    chart = partial(line_chart, times=[point.at for point in points], until=now)
    lags = [point.lag_s for point in points]
    latest = next((lag for lag in reversed(lags) if lag is not None), None)
    return [
        chart(
            id_="lag",
            title="Lag",
            unit="s",
            hint="age of the oldest waiting record",
            nothing="lag unknown in this period",
            lines=[ChartLine(name="oldest", values=lags, look=1, last=duration_text(latest))],
        ),
        chart(
            id_="waiting",
            title="Waiting",
            unit="records",
            hint="records waiting in the topic",
            nothing="lag unknown in this period",
            lines=[ChartLine(name="records", values=[p.lag_records for p in points], look=1)],
        ),
        chart(
            id_="answered",
            title="Answered",
            unit="records/s",
            nothing="no data for this period",
            lines=[ChartLine(name="answered", values=[p.answered_per_s for p in points], look=1)],
        ),
        chart(
            id_="dead-letters",
            title="Dead letters",
            unit="records/s",
            hint="records without an answer",
            nothing="no data for this period",
            lines=[
                ChartLine(
                    name="dead letters", values=[p.dead_letters_per_s for p in points], look=3
                )
            ],
        ),
    ]


def _verb_of(text: str) -> str:
    """Return a verb of streams.

    Raises:
        RefusedError: The command does not exist.
    """
    if text not in VERBS:
        raise RefusedError.of(_NOT_FOUND, f"unknown stream action: {text[:20]!r}")
    return text
