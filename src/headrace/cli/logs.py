"""`headrace logs`: log lines of gateway, control plane and replicas."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.connection import log_lines
from headrace.cli.options import (
    ControlPlane,
    LogFormat,
    LogFormatOption,
)
from headrace.cli.output import say, write

if TYPE_CHECKING:
    from collections.abc import Iterable

HEADER: Final = (
    f"{'time':<12}  {'code':<17} {'endpoint':<16} {'version':<8} {'took':>9} {'replica':>9}  "
    f"{'caller':<16} {'trace':<32}  request"
)
_NO: Final = "-"
_OK: Final = "OK"


def request_line(text: str) -> str:
    """`text`, a JSON line of the gateway's, in columns; as it is if it is something else."""
    try:
        entry = json.loads(text)
    except ValueError:
        return _one_line(text)
    if not isinstance(entry, Mapping):
        return _one_line(text)
    endpoint, version = _who_answered(entry)
    took_ms, replica_us = entry.get("duration_ms"), entry.get("replica_us")
    line = (
        f"{str(entry.get('time'))[11:23]:<12}  {_outcome(entry):<17} {endpoint:<16} {version:<8} "
        f"{_ms(took_ms):>9} {_ms(replica_us, 1000):>9}  {_text(entry, 'caller'):<16} "
        f"{trace_of(entry) or _NO:<32}  {_text(entry, 'method')} {_text(entry, 'path')}"
    )
    return _one_line(line)


def is_about(text: str, endpoint: str) -> bool:
    """Whether a JSON line is of a request to `endpoint`; of any if that is empty."""
    if not endpoint:
        return True
    try:
        entry = json.loads(text)
    except ValueError:
        return False
    return isinstance(entry, Mapping) and _who_answered(entry)[0] == endpoint


def trace_of(entry: Mapping[str, Any]) -> str:
    """The trace that a request belongs to; empty if nobody said."""
    if found := entry.get("trace_id"):
        return str(found)
    parts = str(entry.get("traceparent") or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""  # noqa: PLR2004  # W3C's form


def _who_answered(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Endpoint and version, of the cluster if one was reached."""
    endpoint, _, key = str(entry.get("cluster") or "").partition("~")
    if key:
        return endpoint, f"v{key}"
    return _text(entry, "endpoint"), _NO


def _outcome(entry: Mapping[str, Any]) -> str:
    """HTTP's status, gRPC's where it says more; why it ended early, if it did."""
    code, grpc = str(entry.get("code") or "left"), entry.get("grpc_status")
    flags = entry.get("flags")
    word = f"{code} {grpc}" if grpc and grpc != _OK and code == "200" else code
    return f"{word} {flags}" if flags and flags != _NO else word


def _ms(value: object, per_ms: int = 1) -> str:
    return f"{value / per_ms:.1f} ms" if isinstance(value, int | float) else _NO


def _text(entry: Mapping[str, Any], name: str) -> str:
    return str(entry.get(name) or _NO)


def _one_line(text: str) -> str:
    """What a caller sent may hold escapes: they stay on their line, off the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Only this process, by its name in `headrace status --json`.",
            show_default="all of them",
        ),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines.")] = 100,
    requests: Annotated[
        bool, typer.Option("--requests", help="Requests instead, as the gateway logged them.")
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint", "-e", help="With --requests: only of this one.", show_default="all"
        ),
    ] = "",
    log_format: LogFormatOption = None,
    plane: ControlPlane,
) -> None:
    """Print the newest log lines of all processes, also of those that have ended.

    For example:

        headrace logs -f

        headrace logs gateway --tail 20

        headrace logs --requests -e fraud -f
    """
    from headrace.control import read_control_file

    wanted = str(log_format or LogFormat.TEXT)
    if requests:
        if source is not None:
            raise typer.BadParameter("--requests are the gateway's: leave the process out")
        _requests(plane, endpoint, wanted, follow=follow, tail=tail)
        return
    lines: Iterable[str]
    target = plane.target()
    if follow or target.is_remote or read_control_file(plane.home) is not None:
        lines = target.management().lines(
            "/api/v1/logs", follow=int(follow), tail=tail, source=source, format=wanted
        )
    else:
        lines = log_lines(plane.home, tail=tail, source=source or "", log_format=wanted)
        say(f"nothing runs on {plane.home}; this is what was logged before")
    for line in lines:
        write(line)


def _requests(plane: ControlPlane, endpoint: str, wanted: str, *, follow: bool, tail: int) -> None:
    """Print the request log, in columns or as it is."""
    api = plane.target().management()
    if follow and endpoint:
        api.get(f"/api/v1/endpoints/{endpoint}")  # nobody waits for what will not come
    lines = api.lines("/api/v1/logs", follow=int(follow), tail=tail, source="access", format="json")
    found = (line for line in lines if is_about(line, endpoint))
    first = next(found, None)
    if first is None:
        if endpoint:
            api.get(f"/api/v1/endpoints/{endpoint}")  # says so if there is no such endpoint
        say("no request was logged")
        return
    as_json = wanted == "json"
    if not as_json:
        say(HEADER)
    for line in itertools.chain([first], found):
        write(line if as_json else request_line(line))
