"""Events and history: `headrace events`, `history`, `undo`, `feedback`, `payloads`, `logs`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
import json as codec
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.base.options import (
    ControlPlaneOptions,
    EndpointName,
    Follow,
    Json,
    LogFormat,
    LogFormatOption,
    OneEndpoint,
    WaitS,
    argument,
    option,
)
from headrace.cli.base.output import (
    Column,
    clock_column,
    clock_text,
    progress,
    say,
    show,
    show_answer,
    show_document,
    table,
    write,
    write_json,
)
from headrace.core import DeadlineExceededError, UnavailableError, span
from headrace.core.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.cli.base.management import Management

_RETRY_S = 2.0
_Limit = Annotated[int, option("Number of newest events.", "--limit", "-n", min=1, max=1000)]


def events(
    endpoint: OneEndpoint = "",
    *,
    follow: Follow = False,
    limit: _Limit = 50,
    json: Annotated[bool, option("Print one JSON object per line.", "--json")] = False,
    plane: ControlPlaneOptions,
) -> None:
    """Print events of endpoints: changes, rollouts, scaling and replicas, with reasons.

    For example:

        headrace events fraud --follow
    """
    api = plane.connect()
    events = api.get("/api/v1/events", endpoint=endpoint, limit=limit)["events"]
    for event in events:
        write(event_line(event, json=json))
    if not follow:
        if not events:
            say("no events yet")
        return
    last = events[-1]["id"] if events else 0
    for event in follow_events(api, endpoint, last):
        write(event_line(event, json=json))


def follow_events(
    api: "Management", endpoint: str, last_id: int, *, retry_s: float = _RETRY_S
) -> "Iterator[dict[str, Any]]":
    """Yield events after `last_id` as they arrive; reconnects to a restarted control plane."""
    last_error = ""
    while True:
        try:
            stream = api.events("/api/v1/watch", last_id=str(last_id), endpoint=endpoint)
            for event in stream:
                last_error = ""
                yield codec.loads(event.data)
                last_id = int(event.id)
        except (UnavailableError, DeadlineExceededError) as error:
            if not last_error:
                say(last_error := str(error))
        time.sleep(retry_s)


def event_line(event: dict[str, Any], *, json: bool) -> str:
    """Return one event as a line."""
    if json:
        return codec.dumps(event, separators=(",", ":"))
    by = f" (by {event['actor']})" if event["actor"] else ""
    message = event["message"].partition("\n")[0]
    location = f"{event['endpoint']:<16} " if event["endpoint"] else ""
    return (
        f"{clock_text(event['at'])}  {location}{event['kind']:<8} {event['reason']:<12} "
        f"{message}{by}"
    )


def feedback(
    request_id: Annotated[str, argument("The x-request-id header of the response.")],
    reward: Annotated[
        float | None,
        argument("Reward of the response; higher is better.", shown="with --label, none"),
    ] = None,
    *,
    label: Annotated[str | None, option("Correct answer: a class or a number.")] = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Report the reward of a response, or the correct answer.

    Rewards decide rollouts with the reward metric. Only the first feedback of a request counts;
    feedback for a request that is not known yet is stored until it is. `headrace drift ENDPOINT`
    shows the accuracy from labels (spec: `drift: {labels: true}`).

    For example:

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f 1.0

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f --label cat
    """
    if (reward is None) == (label is None):
        raise typer.BadParameter("pass a reward, or a label with --label", param_hint="REWARD")
    value = {"reward": reward} if label is None else {"label": label}
    answer = plane.connect().post("/api/v1/feedback", {"request_id": request_id, **value})
    outcome = answer["results"][0]["outcome"]
    show_answer(answer, f"{request_id}: {_OUTCOMES.get(outcome, outcome)}", json=json)


_OUTCOMES: Final = {
    "taken": "counted",
    "duplicate": "ignored: this request already has feedback",
    "waiting": "stored until the request is known",
    "unfit": "not counted: the answer is a number, the label is not",
}
_LONGEST: Final = 120


def history(
    endpoint: EndpointName,
    *,
    limit: _Limit = 100,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List the generations of an endpoint: time, model versions, author and reason.

    The list includes ended rollouts with their decision and its author or cause.

    For example:

        headrace history fraud
    """
    path = f"/api/v1/endpoints/{endpoint}/history"
    document = plane.connect().get(path, limit=limit)
    show_document(document, history_rows(document)[:limit], HISTORY_COLUMNS, json=json)


def history_rows(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return generations and ends of rollouts in one list, newest first."""
    rows = [
        {**entry, "what": versions_text(entry), "why": entry["reason"], "by": entry["actor"]}
        for entry in document["generations"]
    ]
    rows += [
        {
            "current": False,
            "generation": end["id"],
            "at": end["at"],
            "what": f"{end['from_version']} to {end['to_version']}",
            "by": end["decided_by"],
            "why": end_text(end),
        }
        for end in document["rollouts"]
    ]
    return sorted(rows, key=lambda row: row["at"], reverse=True)


HISTORY_COLUMNS: Final[dict[str, Column]] = {
    "": lambda row: "*" if row["current"] else "",
    "generation": lambda row: str(row["generation"]),
    "since": clock_column("at"),
    "versions": lambda row: str(row["what"]),
    "by": lambda row: str(row["by"]),
    "why": lambda row: str(row["why"]),
}


def end_text(end: dict[str, Any]) -> str:
    """Return a rollout's outcome, duration and reason as a line."""
    text = f"{end['phase'].replace('_', ' ')} after {span(end['duration_s'])}: {end['why']}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def versions_text(entry: dict[str, Any]) -> str:
    """Return a summary of a generation's versions."""
    if entry["spec"] is None and not entry["versions"]:
        return "removed"
    versions = entry["versions"]
    if len(versions) == 1:
        return str(versions[0]["model"])
    return ", ".join(f"{version['model']} {version['weight']}%" for version in versions)


def undo(
    endpoint: EndpointName,
    *,
    to: Annotated[
        int | None,
        option(
            "Generation number from `headrace history`.", min=1, shown="the one before the newest"
        ),
    ] = None,
    wait: Annotated[bool, option("Wait until the generation is ready.", "--wait")] = False,
    wait_s: WaitS = 120.0,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Revert an endpoint to an earlier generation, immediately and without a rollout.

    The models of that generation are pinned, so the same versions are served again. The result is a
    new generation: a second `undo` reverts the first.

    For example:

        headrace undo fraud

        headrace undo fraud --to 3 --wait
    """
    from headrace.cli.base.spec_file import show_applied

    api = plane.connect()
    body = {} if to is None else {"generation": to}
    with progress("waiting until it is ready" if wait else "reverting"):
        answer = api.post(
            f"/api/v1/endpoints/{endpoint}/undo",
            body,
            timeout_s=wait_s + 30,
            wait_s=wait_s if wait else None,
        )
    show_applied(answer, json=json)


_SHAPE: Final = ".shape"
_LONGEST_CELL: Final = 40
_NO: Final = "-"


def payloads(
    endpoint: Annotated[str, argument("Whose.")],
    *,
    rows: Annotated[
        int,
        option(
            "Show this many newest requests instead of the files.", "--rows", "-n", min=0, max=1000
        ),
    ] = 0,
    request: Annotated[str, option("Show the request with this id.", shown="any")] = "",
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show the files of an endpoint's payload log, or the logged requests and responses.

    For example:

        headrace payloads fraud

        headrace payloads fraud --rows 20
    """
    api = plane.connect()
    path = f"/api/v1/endpoints/{endpoint}/payloads"
    if not rows and not request:
        log = api.get(path)
        if not json:
            state = "on" if log["on"] else "off"
            say(f"payload log is {state}: {log['written']} written, {log['dropped']} dropped")
        if json or log["files"]:
            show_document(log, log["files"], _FILE_COLUMNS, json=json)
        return
    rows_kept = api.get(f"{path}/rows", limit=rows or 1, request_id=request)["rows"]
    if json:
        write_json(rows_kept)
    elif not rows_kept:
        say(f"no logged requests of '{endpoint}'")
    else:
        show(table(*cells(rows_kept)))


_FILE_COLUMNS: Final[dict[str, Column]] = {
    "begin": "begin",
    "version": lambda file: f"v{file['version']}",
    "size": lambda file: bytes_text(file["bytes"]),
    "state": lambda file: "open" if file["open"] else "closed",
    "file": "path",
}


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], *tuple[str, ...]]:
    """Return the lines of a table, and its column names: those of all rows."""
    names = dict.fromkeys(
        name for row in rows for name in row if not name.endswith(_SHAPE) and name != "trace_id"
    )
    lines = [[_cell(row.get(name)) for name in names] for row in rows]
    return lines, *names


def _cell(value: object) -> str:
    if value is None or value == "":
        return _NO
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"[{', '.join(map(_cell, value))}]" if isinstance(value, list) else str(value)
    text = _one_line(text)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


HEADER: Final = (
    f"{'time':<12}  {'code':<17} {'endpoint':<16} {'version':<8} {'took':>9} {'replica':>9}  "
    f"{'caller':<16} {'trace':<32}  request"
)
_OK: Final = "OK"


def request_line(text: str) -> str:
    """Return a JSON line of the gateway in columns; other lines unchanged."""
    entry = _entry(text)
    if entry is None:
        return _one_line(text)
    endpoint, version = _answering_version(entry)
    # HTTP status, or gRPC status if more specific; and why the request ended early, if it did.
    code, grpc, flags = (
        str(entry.get("code") or "left"),
        entry.get("grpc_status"),
        entry.get("flags"),
    )
    outcome = f"{code} {grpc}" if grpc and grpc != _OK and code == "200" else code
    outcome = f"{outcome} {flags}" if flags and flags != _NO else outcome
    took, replica = (
        f"{value / per_ms:.1f} ms" if isinstance(value, int | float) else _NO
        for value, per_ms in ((entry.get("duration_ms"), 1), (entry.get("replica_us"), 1000))
    )
    line = (
        f"{str(entry.get('time'))[11:23]:<12}  {outcome:<17} {endpoint:<16} {version:<8} "
        f"{took:>9} {replica:>9}  {entry.get('caller') or _NO:<16} "
        f"{trace_of(entry) or _NO:<32}  {entry.get('method') or _NO} {entry.get('path') or _NO}"
    )
    return _one_line(line)


def is_about(text: str, endpoint: str) -> bool:
    """Whether a JSON line is of a request to `endpoint`; always if that is empty."""
    if not endpoint:
        return True
    entry = _entry(text)
    return entry is not None and _answering_version(entry)[0] == endpoint


def _entry(text: str) -> Mapping[str, Any] | None:
    try:
        entry = codec.loads(text)
    except ValueError:
        return None
    return entry if isinstance(entry, Mapping) else None


def trace_of(entry: Mapping[str, Any]) -> str:
    """Return the trace of a request; empty if unknown."""
    if trace := entry.get("trace_id"):
        return str(trace)
    parts = str(entry.get("traceparent") or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""  # noqa: PLR2004  # W3C's form


def _answering_version(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Return endpoint and version, from the cluster if one was reached."""
    endpoint, _, key = str(entry.get("cluster") or "").partition("~")
    return (endpoint, f"v{key}") if key else (str(entry.get("endpoint") or _NO), _NO)


def _one_line(text: str) -> str:
    """Return callers' text with escape sequences and line breaks replaced."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def logs(
    source: Annotated[
        str | None,
        argument(
            "Only this process, by its name in `headrace status --json`.", shown="all processes"
        ),
    ] = None,
    *,
    follow: Follow = False,
    tail: Annotated[int, option("Number of lines.", "--tail", "-n", min=0)] = 100,
    requests: Annotated[
        bool, option("Show the gateway's request log instead.", "--requests")
    ] = False,
    endpoint: Annotated[
        str, option("With --requests: only this request id.", "--endpoint", "-e", shown="all")
    ] = "",
    log_format: LogFormatOption = None,
    plane: ControlPlaneOptions,
) -> None:
    """Print the newest log lines of all processes, including processes that have ended.

    For example:

        headrace logs -f

        headrace logs gateway --tail 20

        headrace logs --requests -e fraud -f
    """
    form = str(log_format or LogFormat.TEXT)
    if requests and source is not None:
        raise typer.BadParameter("--requests shows the gateway's log and takes no process name")
    target = plane.target()
    if not requests and not follow and not target.is_remote and not target.is_running():
        from headrace.cli.base.offline import log_lines

        for line in log_lines(plane.home, tail=tail, source=source or "", log_format=form):
            write(line)
        say(f"no system runs in {plane.home}; showing earlier log lines")
        return
    api = target.management()
    if requests and follow and endpoint:
        api.get(f"/api/v1/endpoints/{endpoint}")  # fails early if the endpoint does not exist
    lines: Iterator[str] = api.lines(
        "/api/v1/logs",
        follow=int(follow),
        tail=tail,
        source="access" if requests else source,
        format="json" if requests else form,
    )
    if requests:
        lines = (line for line in lines if is_about(line, endpoint))
        first = next(lines, None)
        if first is None:
            if endpoint:
                api.get(f"/api/v1/endpoints/{endpoint}")  # fails if the endpoint does not exist
            say("no request was logged")
            return
        lines = itertools.chain([first], lines)
        if form != LogFormat.JSON:
            say(HEADER)
            lines = map(request_line, lines)
    for line in lines:
        write(line)
