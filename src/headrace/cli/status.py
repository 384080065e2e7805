"""`headrace status`: what runs, and what does not and why."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.text import Text

from headrace.cli.options import ControlPlane, Json
from headrace.cli.output import NOT_READY, show, show_live, table, write_json
from headrace.cli.stream.find import stream_rows
from headrace.core import UnavailableError
from headrace.core.text import bytes_text

if TYPE_CHECKING:
    from rich.console import RenderableType

    from headrace.cli.connection import Target


def gateway_lines(document: dict[str, Any]) -> list[str]:
    """A line for each that follows."""
    return [
        f"gateway '{one['name']}': {one['standing']}, version {one['version'] or 'none'}, heard "
        f"{one['seen_s']:.1f} s ago{_reached(one)}"
        for one in _gateways(document)
        if not _trouble(one)
    ]


def gateway_troubles(document: dict[str, Any]) -> list[str]:
    """A line for each that does not, and for having none at all."""
    gateway = document.get("gateway", {})
    lines = [f"gateway '{one['name']}': {_trouble(one)}" for one in _gateways(document)]
    found = [line for line in lines if not line.endswith(": ")]
    if not found and gateway.get("reason"):
        found = [f"gateway: {gateway['reason']}"]
    return found


def _gateways(document: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = document.get("gateway", {}).get("gateways", [])
    return found


def _trouble(one: dict[str, Any]) -> str:
    """What is wrong with one; empty if nothing is."""
    why = f": {one['reason']}" if one["reason"] else ""
    match one["standing"]:
        case "behind":
            return f"behind by {one['behind_s']:,.0f} s{why}"
        case "lost":
            return f"not heard for {one['seen_s']:,.0f} s"
        case "refused":
            return f"refused the newest version{why}"
        case _:
            return "" if one["ready"] else f"does not serve{why}"


def _reached(one: dict[str, Any]) -> str:
    return f", {one['url']}" if one["url"] else ""


_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_STREAM_STYLES = {"running": "green", "paused": "dim", "failed": "red"}


def status(
    *,
    json: Json = False,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Keep showing it until Ctrl-C.")
    ] = False,
    plane: ControlPlane,
) -> None:
    """Show endpoints, streams, jobs and addresses; exit status 3 unless all is ready.

    Ready: the gateway serves, every endpoint answers, and every stream runs or is paused.

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
        target.management().get("/api/v1/status")  # says what is wrong
    if not document["ready"]:
        raise typer.Exit(NOT_READY)


def _fetch(target: "Target") -> dict[str, Any]:
    """The status document, rollouts under way, and whether a control plane answered at all."""
    try:
        api = target.management()
        document = api.get("/api/v1/status")
        rollouts = api.get("/api/v1/rollouts", active="true")["rollouts"]
    except UnavailableError as error:
        return {"running": False, "ready": False, "endpoints": [], "message": str(error)}
    return {"running": True} | document | {"rollouts": rollouts}


def render(document: dict[str, Any]) -> "RenderableType":
    """The status document as tables."""
    if not document["running"]:
        return Text(str(document["message"]))
    others = [part for part in (_streams(document), _jobs(document)) if part is not None]
    is_other = bool(others) and not document["endpoints"]
    parts: list[RenderableType] = [] if is_other else [_endpoints(document["endpoints"])]
    for part in others:
        parts += [*([Text()] if parts else []), part]
    parts += [Text(line, style="yellow") for line in _troubles(document)]
    parts += [Text(line, style="cyan") for line in _rollouts(document.get("rollouts", []))]
    parts += [Text(line, style="dim") for line in batching_lines(document["endpoints"])]
    parts += [Text(line, style="dim") for line in _optimized(document)]
    parts += [Text(line, style="dim") for line in _advice(document)]
    parts += [Text(line, style="dim") for line in gateway_lines(document)]
    parts += [Text(line, style="dim") for line in _certificates(document)]
    parts += [Text(line, style="dim") for line in _features(document)]
    parts += [Text(), addresses(document.get("addresses", {}))]
    return Group(*parts)


def addresses(known: dict[str, Any]) -> "Text":
    """Where everything is reached."""
    if known.get("grpc"):
        known = {**known, "grpc": grpc_url(str(known.get("http", "")), str(known["grpc"]))}
    labels = {"http": "HTTP, gRPC", "grpc": "gRPC", "admin": "management"}
    return table(
        (labels.get(name, name), str(address)) for name, address in known.items() if address
    )


def grpc_url(http_url: str, target: str) -> str:
    """The second port's target, which says that it is encrypted if it is."""
    return f"grpcs://{target}" if http_url.startswith("https:") else target


def _endpoints(endpoints: list[dict[str, Any]]) -> "RenderableType":

    if not endpoints:
        return Text("no endpoints yet; `headrace apply -f headrace.yaml` adds some")
    names = ("endpoint", "ready", "version", "model", "weight", "replicas", "restarts")
    rows: list[tuple[str | Text, ...]] = []
    for endpoint in endpoints:
        ready = Text("yes", style="green") if endpoint["ready"] else Text("no", style="red")
        head = (Text(endpoint["name"], style="bold"), ready)
        for revision in endpoint["revisions"] or [{}]:
            rows.append((*head, *_revision(revision)))
            head = (Text(), Text())
    return table(rows, *names, "memory", "device")


def _streams(document: dict[str, Any]) -> "RenderableType | None":
    """A row for each stream; None without any."""
    streams = document.get("streams") or []
    if not streams:
        return None
    head, *rows = stream_rows(streams)
    styled: list[tuple[str | Text, ...]] = [
        (Text(row[0], style="bold"), _stream_state(row[1]), *row[2:]) for row in rows
    ]
    return table(styled, *head)


def _stream_state(state: str) -> "Text":

    return Text(state, style=_STREAM_STYLES.get(state, "yellow"))


def _jobs(document: dict[str, Any]) -> "RenderableType | None":
    """A row for each job; None without any."""
    from headrace.cli.batch.jobs import JOB_COLUMNS, job_row

    jobs = document.get("jobs") or []
    if not jobs:
        return None
    rows: list[tuple[str | Text, ...]] = [
        (Text(row[0], style="bold"), *row[1:]) for row in map(job_row, jobs)
    ]
    return table(rows, *JOB_COLUMNS)


def _revision(revision: dict[str, Any]) -> tuple[str, ...]:
    if not revision:
        return ("-",) * 7
    replicas = revision["replicas"]
    ready = sum(replica["state"] == "ready" for replica in replicas)
    memory = sum(replica.get("rss_bytes") or 0 for replica in replicas)
    # What runs a version: `CUDA, CPU`; several where its replicas differ.
    used = (", ".join(one["device"]["used"]) for one in replicas if one.get("device"))
    return (
        f"{revision['version']} {revision.get('role', '')}".strip(),
        f"{revision['model']}{' (runs code)' if revision.get('runs_code') else ''}",
        f"{revision['weight']}%",
        f"{ready}/{len(replicas)}",
        str(sum(replica.get("restarts", 0) for replica in replicas)),
        bytes_text(memory or None),
        " or ".join(dict.fromkeys(used)) or "-",
    )


def _certificates(document: dict[str, Any]) -> list[str]:
    """A line for each that callers or upstreams are shown or checked against."""
    return [
        f"{one['what']}: {_named(one['names']) or one['subject'] or '-'}, "
        f"{one['days_left']:.0f} days left"
        for one in document.get("gateway", {}).get("certificates", [])
        if one.get("days_left") is not None
    ]


def _named(names: Sequence[str]) -> str:
    """Three of a certificate's names, those first that other hosts call, and how many more."""
    told = sorted(names, key=lambda name: name in _LOCAL_NAMES)
    more = f" and {len(told) - 3} more" if len(told) > 3 else ""  # noqa: PLR2004  # room for three
    return ", ".join(told[:3]) + more


def _features(document: dict[str, Any]) -> list[str]:
    """A line for each feature view that is materialized by itself, and works."""
    lines = []
    for view in document.get("features", []):
        if view["state"] in {"unscheduled", "failing"}:
            continue
        age = "nothing yet" if view["age_s"] is None else f"newest {view['age_s']:,.0f} s old"
        doing = f", {view['done']} of {view['of']} written" if view["state"] == "running" else ""
        lines.append(f"feature view '{view['name']}': {view['state']}{doing}, {age}")
    return lines


def _troubles(document: dict[str, Any]) -> list[str]:
    lines = gateway_troubles(document)
    lines += [
        f"{fault['kind']} '{fault['name']}' waits: {fault['message']}"
        for fault in document.get("faults", [])
    ]
    lines += [
        f"feature view '{view['name']}': cannot be materialized ({view['failures']} times): "
        f"{view['message']}"
        for view in document.get("features", [])
        if view["failures"]
    ]
    lines += [
        f"feature '{one['feature']}' of '{service['service']}': {one['differing']} of "
        f"{one['rows']} rows were served other than training will see them; see "
        f"`headrace features skew {service['service']}`"
        for service in document.get("feature_skew", [])
        for one in service["features"]
    ]
    lines += [
        f"certificate '{one['name']}': {one['problem']}"
        for one in document.get("gateway", {}).get("certificates", [])
        if one.get("problem")
    ]
    lines += [
        f"stream '{stream['name']}': {stream['state']}: {stream['message']}"
        for stream in document.get("streams", [])
        if stream["message"] and stream["state"] not in {"running", "paused"}
    ]
    lines += [
        f"stream '{stream['name']}': {stream['warning']}"
        for stream in document.get("streams", [])
        if stream.get("warning")
    ]
    for endpoint in document["endpoints"]:
        if endpoint.get("message"):
            lines.append(f"{endpoint['name']}: {endpoint['message']}")
        if endpoint.get("note"):
            lines.append(f"{endpoint['name']}: {endpoint['note']}")
        for revision in endpoint["revisions"]:
            lines += [
                f"{replica['name']}: {replica['state']}, {replica['reason']}"
                for replica in revision["replicas"]
                if replica.get("reason")
            ]
    lines += batching_lines(document["endpoints"], differ=True)
    return lines + _not_started(document) + _not_isolated(document)


def _optimized(document: dict[str, Any]) -> list[str]:
    """A line for each way in which the optimizer has a version run, and where that was verified."""
    lines = [
        f"{endpoint['name']} {revision['version']}: {text}"
        for endpoint in document["endpoints"]
        for revision in endpoint["revisions"]
        for replica in revision["replicas"]
        if (text := (replica.get("device") or {}).get("optimized"))
    ]
    return list(dict.fromkeys(lines))


def batching_lines(endpoints: list[dict[str, Any]], *, differ: bool = False) -> list[str]:
    """A line for each version whose rows are not proven to be independent.

    Args:
        differ: Only those of which a check found a difference; else only the others.
    """
    return [
        f"{endpoint['name']} {revision['version']}: {revision['batching_message']}"
        for endpoint in endpoints
        for revision in endpoint["revisions"]
        if (report := revision.get("batching"))
        and bool(report["difference"]) is differ
        and (differ or not report["batched"] or report["independence"] == "declared")
    ]


def _not_started(document: dict[str, Any]) -> list[str]:
    """A line for each device that should run a model and does not."""
    return [
        f"{replica['name']}: {name} is here and cannot be used: {why}"
        for endpoint in document["endpoints"]
        for revision in endpoint["revisions"]
        for replica in revision["replicas"]
        for name, why in ((replica.get("device") or {}).get("failed") or {}).items()
    ]


def _not_isolated(document: dict[str, Any]) -> list[str]:
    """A line for each thing that should be kept from replicas and is not."""
    replicas: dict[str, list[str]] = {}
    for endpoint in document["endpoints"]:
        for revision in endpoint["revisions"]:
            for replica in revision["replicas"]:
                for problem in (replica.get("isolation") or {}).get("problems", ()):
                    replicas.setdefault(problem, []).append(replica["name"])
    lines = []
    for problem, names in replicas.items():
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        lines.append(f"not isolated: {names[0]}{others} {problem}")
    return lines


def _rollouts(rollouts: list[dict[str, Any]]) -> list[str]:
    """A line per rollout under way, and what says more."""
    from headrace.cli.rollout.view import progress_of

    return [
        f"{rollout['endpoint']}: rollout {rollout['id']} ({rollout['strategy']}) to version "
        f"{rollout['to_version']} is {rollout['phase']}{progress_of(rollout)}; "
        f"`headrace rollout status {rollout['endpoint']}`"
        for rollout in rollouts
    ]


def _advice(document: dict[str, Any]) -> list[str]:
    return [
        f"{endpoint['name']} version {revision['version']}: {revision['advice']}"
        for endpoint in document["endpoints"]
        for revision in endpoint["revisions"]
        if revision.get("advice")
    ]
