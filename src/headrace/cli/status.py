"""`headrace status`: endpoints, streams, jobs, addresses and problems."""

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from headrace.cli.base.connection import grpc_url
from headrace.cli.base.options import ControlPlaneOptions, Json, option
from headrace.cli.base.output import (
    NOT_READY,
    Column,
    batching_lines,
    columns_from,
    rows_text,
    show,
    show_live,
    styled,
    table,
    write_json,
)
from headrace.cli.batch.jobs import JOB_COLUMNS
from headrace.cli.rollout.view import progress_of
from headrace.cli.stream.find import STREAM_COLUMNS
from headrace.cli.up.flags import StoredFlags
from headrace.core import UnavailableError
from headrace.core.text import bytes_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headrace.cli.base.connection import CommandTarget

Document = dict[str, Any]
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_STREAM_STYLES = {"running": "green", "paused": "dim", "failed": "red"}
_SHOWN_NAMES = 3


def status(
    *,
    json: Json = False,
    watch: Annotated[bool, option("Refresh until Ctrl-C.", "--watch", "-w")] = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show endpoints, streams, jobs and addresses; exit status 3 unless everything is ready.

    Ready means: the gateway and all endpoints serve requests, and all streams run or are paused.

    For example:

        headrace status

        headrace status --json | jq '.endpoints[].ready'

        headrace status --server http://gpu-box:8080 --watch
    """
    target = plane.target()
    if watch:
        show_live(render(_fetch(target)) for _ in itertools.count())
        return
    document = _fetch(target)
    if json:
        write_json(document)
    elif document["running"]:
        show(render(document))
    else:
        target.management().get("/api/v1/status")  # raises the error
    if not document["ready"]:
        raise typer.Exit(NOT_READY)


def _fetch(target: "CommandTarget") -> Document:
    """Return the status document, active rollouts, and whether a control plane responded."""
    try:
        api = target.management()
        document = api.get("/api/v1/status")
        rollouts = api.get("/api/v1/rollouts", active="true")["rollouts"]
    except UnavailableError as error:
        return {"running": False, "ready": False, "endpoints": [], "message": str(error)}
    flags = "" if target.is_remote else StoredFlags.load(target.home).text()
    return {"running": True} | document | {"rollouts": rollouts, "flags": flags}


def render(document: Document) -> "RenderableType":
    """Return the status document as tables."""
    if not document["running"]:
        return Text(str(document["message"]))
    endpoints = document["endpoints"]
    streams, jobs = document.get("streams") or [], document.get("jobs") or []
    parts: list[RenderableType] = []
    if endpoints:
        # Each line has a revision; an endpoint's own cells are in its first line.
        rows = [
            (endpoint if i == 0 else None, revision)
            for endpoint in endpoints
            for i, revision in enumerate(endpoint["revisions"] or [None])
        ]
        parts.append(rows_text(rows, _ENDPOINT_COLUMNS))
    elif not streams and not jobs:
        parts.append(Text("no endpoints yet; add some with `headrace apply -f headrace.yaml`"))
    if streams:
        state = styled("state", _STREAM_STYLES, "yellow")
        columns = {**STREAM_COLUMNS, "stream": _name, "state": state}
        parts += [*([Text()] if parts else []), rows_text(streams, columns)]
    if jobs:
        parts += [*([Text()] if parts else []), rows_text(jobs, {**JOB_COLUMNS, "job": _name})]
    flags = document.get("flags")
    quiet = (
        *([f"flags: {flags}"] if flags else ()),
        *batching_lines(endpoints),
        *_notes(document),
        *gateway_lines(document),
        *_certificates(document),
        *_features(document),
    )
    for style, lines in (
        ("yellow", _problems(document)),
        ("cyan", map(_rollout, document.get("rollouts", []))),
        ("dim", quiet),
    ):
        parts += [Text(line, style=style) for line in lines]
    return Group(*parts, Text(), addresses(document.get("addresses", {})))


def _name(row: Document) -> Text:
    return Text(row["name"], style="bold")


def _revision(revision: Document | None) -> tuple[str, ...]:
    """Return the cells of a revision."""
    if revision is None:
        return ("-",) * 7
    replicas = revision["replicas"]
    ready = sum(replica["state"] == "ready" for replica in replicas)
    # Devices of a version: `CUDA, CPU`; several if its replicas differ.
    used = (", ".join(replica["device"]["used"]) for replica in replicas if replica.get("device"))
    return (
        f"{revision['version']} {revision.get('role', '')}".strip(),
        f"{revision['model']}{' (runs code)' if revision.get('runs_code') else ''}",
        f"{revision['weight']}%",
        f"{ready}/{len(replicas)}",
        str(sum(replica.get("restarts", 0) for replica in replicas)),
        bytes_text(sum(replica.get("rss_bytes") or 0 for replica in replicas) or None),
        " or ".join(dict.fromkeys(used)) or "-",
    )


_READY = {None: Text(), True: Text("yes", style="green"), False: Text("no", style="red")}
_ENDPOINT_COLUMNS: dict[str, Column] = {
    "endpoint": lambda row: Text() if row[0] is None else _name(row[0]),
    "ready": lambda row: _READY[row[0] and row[0]["ready"]],
    **columns_from(
        lambda row: _revision(row[1]),
        *("version", "model", "weight", "replicas", "restarts", "memory", "device"),
    ),
}


def addresses(urls: Document) -> Text:
    """Return the addresses of the system."""
    if urls.get("grpc"):
        urls = {**urls, "grpc": grpc_url(str(urls.get("http", "")), str(urls["grpc"]))}
    labels = {"http": "HTTP, gRPC", "grpc": "gRPC", "admin": "management"}
    return table(
        (labels.get(name, name), str(address)) for name, address in urls.items() if address
    )


def gateway_lines(document: Document) -> list[str]:
    """Return a line for each connected gateway."""
    return [
        f"gateway '{gateway['name']}': {gateway['standing']}, version "
        f"{gateway['version'] or 'none'}, last report {gateway['seen_s']:.1f} s ago"
        f"{', ' if gateway['url'] else ''}{gateway['url']}"
        for gateway in document.get("gateway", {}).get("gateways", [])
        if not _problem(gateway)
    ]


def gateway_problems(document: Document) -> list[str]:
    """Return a line for each disconnected gateway, and one if there is no gateway."""
    state = document.get("gateway", {})
    lines = [
        f"gateway '{gateway['name']}': {problem}"
        for gateway in state.get("gateways", [])
        if (problem := _problem(gateway))
    ]
    return lines or ([f"gateway: {state['reason']}"] if state.get("reason") else [])


def _problem(gateway: Document) -> str:
    """Return the problem of a gateway; empty without one."""
    reason = f": {gateway['reason']}" if gateway["reason"] else ""
    match gateway["standing"]:
        case "behind":
            return f"configuration outdated for {gateway['behind_s']:,.0f} s{reason}"
        case "lost":
            return f"no report for {gateway['seen_s']:,.0f} s"
        case "refused":
            return f"rejected the newest version{reason}"
        case _:
            return "" if gateway["ready"] else f"not ready{reason}"


def _replicas(document: Document) -> Iterator[tuple[Document, Document, Document]]:
    """Yield each replica with its endpoint and revision."""
    for endpoint in document["endpoints"]:
        for revision in endpoint["revisions"]:
            for replica in revision["replicas"]:
                yield endpoint, revision, replica


def _certificates(document: Document) -> Iterator[str]:
    """Yield a line for each certificate for callers or upstreams."""
    for shown in document.get("gateway", {}).get("certificates", []):
        if shown.get("days_left") is None:
            continue
        # Addresses that other hosts call come first.
        names: Sequence[str] = sorted(shown["names"], key=lambda name: name in _LOCAL_NAMES)
        more = len(names) - _SHOWN_NAMES
        text = ", ".join(names[:_SHOWN_NAMES]) + (f" and {more} more" if more > 0 else "")
        left = f"{shown['days_left']:.0f} days left"
        yield f"{shown['what']}: {text or shown['subject'] or '-'}, {left}"


def _features(document: Document) -> Iterator[str]:
    """Yield a line for each feature view that is materialized automatically and works."""
    for view in document.get("features", []):
        if view["state"] in {"unscheduled", "failing"}:
            continue
        age = "no data yet" if view["age_s"] is None else f"newest {view['age_s']:,.0f} s old"
        operation = (
            f", {view['done']} of {view['of']} written" if view["state"] == "running" else ""
        )
        yield f"feature view '{view['name']}': {view['state']}{operation}, {age}"


def _problems(document: Document) -> Iterator[str]:
    """Yield a line for each problem."""
    yield from gateway_problems(document)
    for fault in document.get("faults", []):
        yield f"{fault['kind']} '{fault['name']}' failed: {fault['message']}"
    yield from (
        f"feature view '{view['name']}': cannot be materialized ({view['failures']} times): "
        f"{view['message']}"
        for view in document.get("features", [])
        if view["failures"]
    )
    yield from (
        f"feature '{skew['feature']}' of '{service['service']}': {skew['differing']} of "
        f"{skew['rows']} served rows differ from the training data; see "
        f"`headrace features skew {service['service']}`"
        for service in document.get("feature_skew", [])
        for skew in service["features"]
    )
    yield from (
        f"certificate '{shown['name']}': {shown['problem']}"
        for shown in document.get("gateway", {}).get("certificates", [])
        if shown.get("problem")
    )
    for stream in document.get("streams", []):
        if stream["message"] and stream["state"] not in {"running", "paused"}:
            yield f"stream '{stream['name']}': {stream['state']}: {stream['message']}"
        if stream.get("warning"):
            yield f"stream '{stream['name']}': {stream['warning']}"
    yield from _endpoint_problems(document)


def _endpoint_problems(document: Document) -> Iterator[str]:
    for endpoint in document["endpoints"]:
        for key in ("message", "note"):
            if endpoint.get(key):
                yield f"{endpoint['name']}: {endpoint[key]}"
    isolation: dict[str, list[str]] = {}
    for _, _, replica in _replicas(document):
        if replica.get("reason"):
            yield f"{replica['name']}: {replica['state']}, {replica['reason']}"
        for device, reason in ((replica.get("device") or {}).get("failed") or {}).items():
            yield f"{replica['name']}: {device} is present but not usable: {reason}"
        for problem in (replica.get("isolation") or {}).get("problems", ()):
            isolation.setdefault(problem, []).append(replica["name"])
    yield from batching_lines(document["endpoints"], differ=True)
    for problem, names in isolation.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"not isolated: {names[0]}{others} {problem}"


def _notes(document: Document) -> Iterator[str]:
    """Yield a line for each optimization of a version, and for each recommendation."""
    optimized = (
        f"{endpoint['name']} {revision['version']}: {text}"
        for endpoint, revision, replica in _replicas(document)
        if (text := (replica.get("device") or {}).get("optimized"))
    )
    yield from dict.fromkeys(optimized)
    for endpoint in document["endpoints"]:
        for revision in endpoint["revisions"]:
            if revision.get("advice"):
                yield f"{endpoint['name']} version {revision['version']}: {revision['advice']}"


def _rollout(rollout: Document) -> str:
    """Return a line about an active rollout."""
    return (
        f"{rollout['endpoint']}: rollout {rollout['id']} ({rollout['strategy']}) to version "
        f"{rollout['to_version']} is {rollout['phase']}{progress_of(rollout)}; "
        f"`headrace rollout status {rollout['endpoint']}`"
    )
