"""Start of `headrace up`: here, in the background, or in what runs already."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Any

from headrace.cli.options import DEFAULT_HOME

_REPORTED_S = 2.0
_LOOK_S = 0.1

if TYPE_CHECKING:
    from headrace.cli.management import Management
    from headrace.control import ControlFile, ControlSettings


def detach(settings: "ControlSettings", *, home: Path, wait_s: float, json: bool) -> bool:
    """Start all in the background, and say where it is reached; whether all endpoints are ready."""
    from headrace.cli.output import progress
    from headrace.control import start_detached
    from headrace.control.settings import read_last_control_file

    last = read_last_control_file(home)
    with progress("starting, until a real request is answered"):
        control = start_detached(settings, timeout_s=wait_s)
    _tell_last(last, control)
    return _announce(control, home=home, json=json)


def run_here(settings: "ControlSettings", home: Path) -> int:
    """Be the control plane in this process; a thread prints the addresses once all is ready.

    Raises:
        FailedPreconditionError: Why nothing came up, once everything is stopped: below the log of
            several processes that ended, nobody would look for it.
    """
    import os
    import threading

    import msgspec

    from headrace.control import read_control_file, run
    from headrace.control.settings import read_last_control_file
    from headrace.core import FailedPreconditionError

    last = read_last_control_file(home)
    reader, writer = os.pipe()
    why = ""

    def announce() -> None:
        nonlocal why
        with os.fdopen(reader, "rb") as notices:
            line = notices.readline()
        notice = msgspec.json.decode(line) if line else {}
        why = notice.get("error", "")
        control = read_control_file(home)
        if control is not None and notice.get("ready"):
            _tell_last(last, control)
            _announce(control, home=home, json=False, stop_with="Ctrl-C")

    announcing = threading.Thread(target=announce, name="announce", daemon=True)
    announcing.start()
    status = run(msgspec.structs.replace(settings, notify_fd=writer))
    announcing.join(timeout=1.0)
    if status and why:
        raise FailedPreconditionError(why)
    return status


def change_running(
    control: "ControlFile",
    document: dict[str, Any] | None,
    *,
    home: Path,
    wait_s: float,
    json: bool,
) -> None:
    """Apply a spec to what runs already; None leaves that as it is."""
    from headrace.cli.connection import local_management
    from headrace.cli.output import progress, say
    from headrace.cli.spec import tell_applied

    api = local_management(control, home)
    say(f"already running on {home} (pid {control.pid}); its ports stay as they are")
    if document is None:
        _announce(control, home=home, json=json)
        return
    with progress("applying, until a real request is answered"):
        answer = api.post("/api/v1/apply", document, timeout_s=wait_s + 30, wait_s=wait_s)
    tell_applied(answer, json=False)
    _announce(control, home=home, json=json)


def _tell_last(last: "ControlFile | None", control: "ControlFile") -> None:
    """Say what became of the addresses of a control plane that was killed."""
    from headrace.cli.output import say

    if last is None:
        return
    moved = [
        f"{what} moved from {before} to {now}"
        for what, before, now in (
            ("the gateway", last.http_url, control.http_url),
            ("gRPC", last.grpc_target, control.grpc_target),
            ("metrics", last.metrics_url, control.metrics_url),
            ("console and API", last.admin_url, control.admin_url),
        )
        if before != now
    ]
    took_over = f"took over from the control plane that was killed (pid {last.pid})"
    say(f"{took_over}; {'; '.join(moved) or 'all ports are the same'}")


def _announce(
    control: "ControlFile", *, home: Path, json: bool, stop_with: str | None = None
) -> bool:
    """Say where everything is reached and which endpoints are not ready; whether all are."""
    from headrace.cli import first_call
    from headrace.cli.connection import local_management
    from headrace.cli.output import columns, say, write, write_json
    from headrace.cli.status import batching_lines, grpc_url

    management = local_management(control, home)
    status = _status(management)
    endpoints, streams = status["endpoints"], status.get("streams", [])
    waiting = [endpoint for endpoint in endpoints if not endpoint["ready"]]
    if json:
        write_json(control)
    else:
        flag = "" if home == DEFAULT_HOME else f" --home {home}"
        rows = [
            ("HTTP, gRPC", control.http_url),
            ("gRPC", grpc_url(control.http_url, control.grpc_target)),
            ("metrics", control.metrics_url),
            ("console, API", control.admin_url),
            ("log in with", f"headrace token show{flag}"),
            ("stop with", stop_with or f"headrace down{flag}"),
        ]
        running = sum(stream["state"] == "running" for stream in streams)
        more = f", {running} of {len(streams)} streams running" if streams else ""
        lines = [f"up: {len(endpoints) - len(waiting)} of {len(endpoints)} endpoints ready{more}"]
        lines += [*batching_lines(endpoints, differ=True), *batching_lines(endpoints)]
        lines += ["", *columns(rows)]
        if endpoints:
            shown = next((e for e in endpoints if e["ready"]), endpoints[0])
            call = first_call.command(
                control.http_url,
                shown["name"],
                flag,
                gateway_ca=control.gateway_ca,
                example=first_call.example_of(management, shown),
            )
            lines += ["", "try it:", call]
        write("\n".join(lines))
    for endpoint in endpoints:
        if endpoint["message"] or endpoint.get("note"):
            say(f"{endpoint['name']}: {endpoint['message'] or endpoint['note']}")
    return not waiting


def _status(api: "Management") -> dict[str, Any]:
    """The status, once ready replicas have reported how they batch, which takes them a second."""
    import time

    until = time.monotonic() + _REPORTED_S
    while True:
        status: dict[str, Any] = api.get("/api/v1/status")
        waits = any(
            revision.get("batching") is None
            for endpoint in status["endpoints"]
            for revision in endpoint["revisions"]
            if any(one["state"] == "ready" for one in revision["replicas"])
        )
        if not waits or time.monotonic() > until:
            return status
        time.sleep(_LOOK_S)
