"""`headrace up`: from a model file to a running system."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import NOT_READY
from headrace.cli.options import (
    DEFAULT_HOME,
    Home,
    Host,
    Json,
    LogFormat,
    LogFormatOption,
    LogLevel,
    StateUrl,
    check_log_level,
)

if TYPE_CHECKING:
    from headrace.control import ControlFile, ControlSettings

SPEC_NAME = "headrace.yaml"
_STATE_FILES = ("state.db", "state.json")
_SPEC_SUFFIXES = {".yaml", ".yml", ".json"}


def up(
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="MODEL_FILE|MODEL_DIR|headrace.yaml",
            help="A model, a directory with a model or a Triton-style repository, or a spec file.",
            show_default="./headrace.yaml, else what ran last",
        ),
    ] = None,
    *,
    detach: Annotated[
        bool,
        typer.Option(
            "--detach", "-d", help="Return when a real request was answered; all goes on."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(
            "--name", help="The endpoint of a model file.", show_default="the file's name"
        ),
    ] = None,
    replicas: Annotated[
        int | None,
        typer.Option("--replicas", min=1, help="Copies of a model file.", show_default="1"),
    ] = None,
    host: Host = None,
    http_port: Annotated[
        int | None,
        typer.Option(
            "--http-port",
            envvar="HEADRACE_HTTP_PORT",
            min=0,
            max=65535,
            help="HTTP and gRPC on one port; 0 picks a free one, here and below.",
            show_default="8000",
        ),
    ] = None,
    grpc_port: Annotated[
        int | None,
        typer.Option(
            "--grpc-port",
            envvar="HEADRACE_GRPC_PORT",
            min=0,
            max=65535,
            help="The same again, where gRPC clients expect it.",
            show_default="8001",
        ),
    ] = None,
    metrics_port: Annotated[
        int,
        typer.Option(
            "--metrics-port",
            envvar="HEADRACE_METRICS_PORT",
            min=0,
            max=65535,
            help="/metrics for Prometheus.",
        ),
    ] = 8002,
    admin_port: Annotated[
        int,
        typer.Option(
            "--admin-port",
            envvar="HEADRACE_ADMIN_PORT",
            min=0,
            max=65535,
            help="Management API.",
        ),
    ] = 8080,
    admin_host: Annotated[
        str,
        typer.Option(
            "--admin-host",
            envvar="HEADRACE_ADMIN_HOST",
            help="Address of the management API and metrics; there is no authentication yet, so "
            "let only a private network in.",
        ),
    ] = "127.0.0.1",
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            "--allowed-host",
            envvar="HEADRACE_ALLOWED_HOSTS",
            metavar="NAME",
            help="A name besides localhost and addresses under which the management API is asked; "
            "may be given several times.",
            show_default="none",
        ),
    ] = None,
    state_url: StateUrl = "",
    allow_code: Annotated[
        bool,
        typer.Option(
            "--allow-code",
            help="Whether models may be of formats that run code of their authors', as Python "
            "models do: says `allow_code: true` at every endpoint.",
        ),
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0.1, help="Seconds that --detach waits for it.")
    ] = 120.0,
    log_format: LogFormatOption = None,
    log_level: LogLevel = "info",
    json: Json = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Serve models: start gateway, replicas and control plane, and keep them running.

    In the foreground it prints the addresses, then the log of everything; Ctrl-C drains and stops.
    Where a system already runs on this home, the new spec is applied to it.

    For example:

        headrace up model.onnx

        headrace up headrace.yaml --detach

        headrace up models/ --name fraud --replicas 2 --http-port 9000
    """
    from headrace.control import ControlSettings, read_control_file

    document = document_for(
        target, name=name, replicas=replicas, home=home, has_state=bool(state_url)
    )
    if allow_code and document is not None:
        document = _with_code(document)
    running = read_control_file(home)
    if running is not None:
        _change_running(running, document, home=home, wait_s=wait_s, json=json)
        return
    settings = ControlSettings(
        home=str(home.absolute()),
        spec=document,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        admin_port=admin_port,
        admin_host=admin_host,
        allowed_hosts=tuple(host.lower() for host in allowed_hosts or ()),
        state_url=state_url,
        allow_code=_env_allows_code(),
        log_format=str(log_format or LogFormat.TEXT),
        log_level=check_log_level(log_level),
        copy_logs=not detach,
    )
    if detach:
        _start_detached(settings, home=home, wait_s=wait_s, json=json)
    else:
        raise typer.Exit(_run_here(settings, home))


def _with_code(document: dict[str, Any]) -> dict[str, Any]:
    """`document` whose endpoints may all have models that run their authors' code."""
    endpoints = [{**entry, "allow_code": True} for entry in document.get("endpoints", [])]
    return {**document, "endpoints": endpoints}


def _env_allows_code() -> bool:
    """Whether this whole control plane takes models that run code, whatever its spec says."""
    import os

    return os.environ.get("HEADRACE_ALLOW_CODE", "").lower() in {"1", "true", "yes"}


def document_for(
    target: Path | None,
    *,
    name: str | None,
    replicas: int | None,
    home: Path,
    has_state: bool = False,
) -> dict[str, Any] | None:
    """The spec that `target` means, as plain data; None goes on with what is stored.

    Args:
        has_state: Whether the state is elsewhere than in `home`.
    """
    if target is None:
        if Path(SPEC_NAME).is_file():
            target = Path(SPEC_NAME)
        elif has_state or any((home / file).is_file() for file in _STATE_FILES):
            return None
        else:
            msg = (
                f"nothing to serve: there is no {SPEC_NAME} here and nothing ran on {home} before; "
                "name a model, as in `headrace up model.onnx`"
            )
            raise typer.BadParameter(msg, param_hint="MODEL_FILE")
    elif not target.exists():
        msg = f"there is no file or directory '{target}'"
        raise typer.BadParameter(msg, param_hint="MODEL_FILE")
    if target.is_dir() and (target / SPEC_NAME).is_file():
        target /= SPEC_NAME
    if target.is_file() and target.suffix in _SPEC_SUFFIXES:
        return _from_spec(target, name=name, replicas=replicas)
    return _from_model(target, name=name, replicas=replicas)


def _from_spec(file: Path, *, name: str | None, replicas: int | None) -> dict[str, Any]:
    from headrace.cli.spec import read_spec

    for flag, value in (("--name", name), ("--replicas", replicas)):
        if value is not None:
            msg = f"a spec file says this itself; set it in {file}"
            raise typer.BadParameter(msg, param_hint=flag)
    return read_spec(file).document()


def _from_model(path: Path, *, name: str | None, replicas: int | None) -> dict[str, Any]:
    from headrace.cli.naming import name_from

    endpoint: dict[str, Any] = {"name": name or name_from(path), "model": str(path.absolute())}
    if replicas is not None:
        endpoint["replicas"] = replicas
    return {"version": 1, "endpoints": [endpoint]}


def _start_detached(settings: "ControlSettings", *, home: Path, wait_s: float, json: bool) -> None:
    from headrace.cli.output import progress
    from headrace.control import start_detached

    with progress("starting, until a real request is answered"):
        control = start_detached(settings, timeout_s=wait_s)
    _announce(control, home=home, json=json)


def _run_here(settings: "ControlSettings", home: Path) -> int:
    """Be the control plane in this process; a thread prints the addresses once all is ready."""
    import os
    import threading

    import msgspec

    from headrace.control import read_control_file, run

    reader, writer = os.pipe()

    def announce() -> None:
        with os.fdopen(reader, "rb") as notices:
            line = notices.readline()
        control = read_control_file(home)
        # Not ready is in the log already, with the reason.
        if control is not None and line and msgspec.json.decode(line).get("ready"):
            _announce(control, home=home, json=False, stop_with="Ctrl-C")

    threading.Thread(target=announce, name="announce", daemon=True).start()
    return run(msgspec.structs.replace(settings, notify_fd=writer))


def _change_running(
    control: "ControlFile",
    document: dict[str, Any] | None,
    *,
    home: Path,
    wait_s: float,
    json: bool,
) -> None:
    from headrace.cli.connection import actor
    from headrace.cli.management import Management
    from headrace.cli.output import progress, say
    from headrace.cli.spec import changes_text, not_ready_text

    api = Management(control.admin_url, actor=actor())
    say(f"already running on {home} (pid {control.pid}); its ports stay as they are")
    if document is None:
        _announce(control, home=home, json=json)
        return
    with progress("applying, until a real request is answered"):
        answer = api.post("/api/v1/apply", document, timeout_s=wait_s + 30, wait_s=wait_s)
    for line in changes_text(answer):
        say(line)
    if not answer.get("ready", True):
        for line in not_ready_text(answer):
            say(line)
        raise typer.Exit(NOT_READY)
    _announce(control, home=home, json=json)


def _announce(
    control: "ControlFile", *, home: Path, json: bool, stop_with: str | None = None
) -> None:
    from headrace.cli import first_call
    from headrace.cli.management import Management
    from headrace.cli.output import columns, write, write_json

    if json:
        write_json(control)
        return
    endpoints = Management(control.admin_url).get("/api/v1/status")["endpoints"]
    flag = "" if home == DEFAULT_HOME else f" --home {home}"
    ready = sum(endpoint["ready"] for endpoint in endpoints)
    rows = [
        ("HTTP, gRPC", control.http_url),
        ("gRPC", control.grpc_target),
        ("metrics", control.metrics_url),
        ("management", control.admin_url),
        ("stop with", stop_with or f"headrace down{flag}"),
    ]
    lines = [f"up: {ready} of {len(endpoints)} endpoints ready", "", *columns(rows)]
    if endpoints:
        lines += ["", "try it:", first_call.command(control.http_url, endpoints[0]["name"], flag)]
    write("\n".join(lines))
