"""`headrace events` and `feedback`: what happened, and what answers earned."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.options import DEFAULT_HOME, Home, Json, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.cli.management import Management

_RETRY_S = 2.0


def events(
    endpoint: Annotated[
        str, typer.Argument(help="Only of this endpoint.", show_default="all")
    ] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest so many.")
    ] = 50,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, and nothing else.")
    ] = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Print what happened to endpoints: changes, rollouts, scaling, replicas, with reasons.

    For example:

        headrace events fraud --follow
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import say, write

    api = connect(server, home)
    found = api.get("/api/v1/events", endpoint=endpoint, limit=limit)["events"]
    for event in found:
        write(event_line(event, json=json))
    if not follow:
        if not found:
            say("no events yet")
        return
    last = found[-1]["id"] if found else 0
    for event in follow_events(api, endpoint, last):
        write(event_line(event, json=json))


def follow_events(
    api: "Management", endpoint: str, last_id: int, *, retry_s: float = _RETRY_S
) -> "Iterator[dict[str, Any]]":
    """Events after `last_id` as they come; goes on after a control plane that was away."""
    import json

    from headrace.cli.output import say
    from headrace.core import DeadlineExceededError, UnavailableError

    told = ""
    while True:
        try:
            stream = api.events("/api/v1/watch", last_id=str(last_id), endpoint=endpoint)
            for event in stream:
                told = ""
                yield json.loads(event.data)
                last_id = int(event.id)
        except (UnavailableError, DeadlineExceededError) as error:
            if not told:
                say(told := str(error))
        time.sleep(retry_s)


def event_line(event: dict[str, Any], *, json: bool) -> str:
    """One event in one line."""
    if json:
        import json as codec

        return codec.dumps(event, separators=(",", ":"))
    from headrace.cli.rollout_table import clock_text

    by = f" (by {event['actor']})" if event["actor"] else ""
    message = event["message"].partition("\n")[0]
    where = f"{event['endpoint']:<16} " if event["endpoint"] else ""
    return (
        f"{clock_text(event['at'])}  {where}{event['kind']:<8} {event['reason']:<12} {message}{by}"
    )


def feedback(
    request_id: Annotated[
        str, typer.Argument(help="The answer's x-request-id.", show_default=False)
    ],
    reward: Annotated[
        float | None,
        typer.Argument(help="What it earned; more is better.", show_default="with --label, none"),
    ] = None,
    *,
    label: Annotated[
        str | None,
        typer.Option(
            "--label", help="What it should have been: a class or a number.", show_default="none"
        ),
    ] = None,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Tell what an answer earned, for a rollout that reward decides, or what was right.

    The first one of a request counts. One that comes before its request is known waits for it.
    `headrace drift ENDPOINT` shows how right answers were (spec: `drift: {labels: true}`).

    For example:

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f 1.0

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f --label cat
    """
    from headrace.cli.connection import connect
    from headrace.cli.output import say, write_json

    if (reward is None) == (label is None):
        raise typer.BadParameter("give a reward, or a label with --label", param_hint="REWARD")
    said = {"reward": reward} if label is None else {"label": label}
    body = {"request_id": request_id, **said}
    answer = connect(server, home).post("/api/v1/feedback", body)
    if json:
        write_json(answer)
        return
    told = {
        "taken": "counted",
        "duplicate": "there was one already, which counts",
        "waiting": "kept until the request is known",
        "unfit": "not counted: the answer is a number, and the label is none",
    }
    outcome = answer["results"][0]["outcome"]
    say(f"{request_id}: {told.get(outcome, outcome)}")
