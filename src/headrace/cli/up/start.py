"""Spec of `headrace up`, and its start: foreground, background, or in a running system."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import base64
import json
import os
import threading
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import typer

from headrace.cli.base.connection import CommandTarget, local_management
from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.management import Management
from headrace.cli.base.options import name_from, seconds
from headrace.cli.base.output import columns, progress, say, write, write_json
from headrace.cli.up.settings import ModelOptions
from headrace.control import read_control_file, run, start_detached
from headrace.control.base.settings import read_last_control_file
from headrace.core import (
    VARIABLE,
    Datatype,
    ExampleValue,
    FailedPreconditionError,
    HeadraceError,
    ModelSignature,
    TensorSpec,
)
from headrace.core.model_uri import is_model_uri, parse_model_uri
from headrace.core.spec.rollout import SloSpec

if TYPE_CHECKING:
    from headrace.cli.up.flags import StoredFlags
    from headrace.control import ControlFile, ControlSettings


SPEC_NAME = "headrace.yaml"
_STATE_FILES = ("state.db", "state.json")


def document_for(
    target: str | Path | None, model: ModelOptions, *, home: Path, has_state: bool = False
) -> dict[str, Any] | None:
    """Return the spec of `target`, as plain data; None continues with the stored state.

    Args:
        target: A URI, a spec file, a model, or NAME[:VERSION] of the registry if no such path
            exists.
        has_state: Whether the state is elsewhere than in `home`.

    Raises:
        BadParameter: There is no target, or an option does not fit it.
    """
    used = [
        flag for flag, (field, _) in _KEYS.items() if getattr(model, field) not in (None, False)
    ]
    if target is not None and is_model_uri(str(target)):
        name = model.name or parse_model_uri(str(target)).model_name
        return {"version": 1, "endpoints": [_endpoint(name, str(target), model)]}
    if target is not None:
        path = Path(target)
    elif Path(SPEC_NAME).is_file():
        path = Path(SPEC_NAME)
    else:
        if has_state or any((home / file).is_file() for file in _STATE_FILES):
            if used:
                msg = "the stored state is resumed; pass a model or a spec file"
                raise typer.BadParameter(msg, param_hint=used[0])
            return None
        msg = (
            f"nothing to serve: there is no {SPEC_NAME} here and {home} has no stored state; "
            "pass a model, as in `headrace up model.onnx`"
        )
        raise typer.BadParameter(msg, param_hint="MODEL_FILE")
    if not path.exists():
        reference = _reference(str(target), home)
        return {
            "version": 1,
            "endpoints": [_endpoint(model.name or reference.partition(":")[0], reference, model)],
        }
    if path.is_dir() and (path / SPEC_NAME).is_file():
        path /= SPEC_NAME
    from headrace.cli.base.spec_file import is_spec, read_spec

    if not is_spec(path):
        endpoint = _endpoint(model.name or name_from(path), str(path.absolute()), model)
        return {"version": 1, "endpoints": [endpoint]}
    if used:
        key = _KEYS[used[0]][1]
        msg = f"not valid with a spec file; set `{key}` of the endpoint in {path}"
        raise typer.BadParameter(msg, param_hint=used[0])
    return read_spec(path, allows_uris=True).document()


def _reference(target: str, home: Path) -> str:
    """Return `target`, which names a stored version.

    Raises:
        BadParameter: The registry has no such version.
    """
    from headrace.cli.base.offline import home_registry

    try:
        home_registry(home).get(target)
    except HeadraceError as error:
        reason = "" if "/" in target else f", and {error}"  # registry names have no slash
        msg = f"no file or directory '{target}'{reason}"
        raise typer.BadParameter(msg, param_hint="MODEL_FILE") from None
    return target


def names_spec(target: str | Path | None) -> bool:
    """Whether `target` of `headrace up` is a spec, which replaces the desired state.

    A model adds its endpoint, or updates it.
    """
    path = Path(SPEC_NAME if target is None else target)
    if path.is_dir() and (path / SPEC_NAME).is_file():
        path /= SPEC_NAME
    from headrace.cli.base.spec_file import is_spec

    return path.is_file() and is_spec(path)


def stored_spec(home: Path, state_url: str) -> dict[str, Any]:
    """Return the spec in the stored state of a home where nothing runs; empty if there is none."""
    from headrace.control.base.home import Home
    from headrace.control.base.settings import resolve_url
    from headrace.control.state import home_url, open_store

    if not state_url and not any((home / file).is_file() for file in _STATE_FILES):
        return {}
    folder = Home.at(home.absolute())
    store = open_store(resolve_url(state_url) or home_url(folder.root), legacy=folder.state_file)
    try:
        return store.load.blocking().spec
    finally:
        store.close()


def _endpoint(name: str, source: str, model: ModelOptions) -> dict[str, Any]:
    """Return the endpoint of a spec that serves the model `source`: a path, reference or URI."""
    endpoint: dict[str, Any] = {"name": name, "model": source}
    if model.replicas is not None:
        endpoint["replicas"] = model.replicas
    if model.slo_p99 is not None:
        endpoint["slo"] = {"latency_s": _latency_s(model.slo_p99)}
    if model.max_replicas is not None:
        if model.replicas is not None and model.replicas > model.max_replicas:
            msg = f"{model.max_replicas} is less than the initial --replicas {model.replicas}"
            raise typer.BadParameter(msg, param_hint="--max-replicas")
        endpoint["autoscale"] = {"max_replicas": model.max_replicas}
    if model.rows_independent:
        endpoint["batching"] = {"rows_independent": True}
    return endpoint


_KEYS = {
    "--name": ("name", "name"),
    "--replicas": ("replicas", "replicas"),
    "--slo-p99": ("slo_p99", "slo: {latency_s: 0.15}"),
    "--max-replicas": ("max_replicas", "autoscale: {max_replicas: 4}"),
    "--rows-independent": ("rows_independent", "batching: {rows_independent: true}"),
}
"""Options of a model: the field of `ModelOptions`, and the equivalent spec setting."""


def _latency_s(text: str) -> float:
    """Return the latency of `--slo-p99`, within the limits of a spec."""
    from pydantic import ValidationError

    from headrace.core.spec.base import parsed

    flag = "--slo-p99"
    if text.strip()[-1:].isdigit():  # a bare number would be seconds: 150 s is no SLO
        msg = f"'{text}' has no unit; write {text.strip()}ms or {text.strip()}s"
        raise typer.BadParameter(msg, param_hint=flag)
    latency_s = round(seconds(text.strip(), flag), 9)
    try:
        parsed(SloSpec, {"latency_s": latency_s})
    except ValidationError as error:
        limit = error.errors()[0]["msg"].removeprefix("Input should be ")
        msg = f"'{text}': an SLO is {limit} seconds"
        raise typer.BadParameter(msg, param_hint=flag) from None
    return latency_s


def with_code(document: dict[str, Any]) -> dict[str, Any]:
    """Return `document` with `allow_code` for all endpoints."""
    endpoints = [{**entry, "allow_code": True} for entry in document.get("endpoints", [])]
    return {**document, "endpoints": endpoints}


def with_tuning(document: dict[str, Any] | None, home: Path) -> dict[str, Any]:
    """Return `document` completed from profiles."""
    from headrace.cli.base.spec_file import tuned_document

    if document is None:
        msg = "the stored state is resumed; pass a spec or a model"
        raise typer.BadParameter(msg, param_hint="--tuned")
    return tuned_document(document, CommandTarget(home=home))


_LONGEST_BODY: Final = 400


def command(
    http_url: str,
    endpoint: str,
    flag: str = "",
    *,
    gateway_ca: str = "",
    example: Mapping[str, ExampleValue] = MappingProxyType({}),
) -> str:
    """Return a `curl` line for `endpoint` if its inputs are small, else a `headrace infer` line.

    Args:
        flag: Additional options of `headrace`, such as ` --home DIR`.
        gateway_ca: The file of the gateway's certificate; empty for plain text. Only `headrace`
            knows that it may be trusted, so only that is named then.
        example: Values of `ModelSignature.example`, where the model's version is known.
    """
    short = f"headrace infer {endpoint}{flag}"
    if gateway_ca:
        return short
    try:
        document = Management(http_url).get(f"/v2/models/{endpoint}")
        inputs = [
            TensorSpec(
                name=tensor["name"],
                datatype=Datatype(tensor["datatype"]),
                shape=tuple(map(int, tensor["shape"])),
            )
            for tensor in document["inputs"]
        ]
        is_language_model = not inputs and not document["outputs"]
    except (HeadraceError, KeyError, ValueError):
        return short
    if is_language_model:
        chat = {"model": endpoint, "messages": [{"role": "user", "content": "Hello!"}]}
        return f"curl -s {http_url}/v1/chat/completions -d '{json.dumps(chat)}'"
    path, body = f"v2/models/{endpoint}/infer", example_body(inputs, example)
    if coded := _base64_body(inputs):
        path, body = f"v1/models/{endpoint}:predict", coded
    if len(body) > _LONGEST_BODY:
        return short
    return f"curl -s {http_url}/{path} -d '{body}'"


def example_of(management: Management, endpoint: Mapping[str, Any]) -> dict[str, ExampleValue]:
    """Return the example of an endpoint of the status, else of its model; empty if unknown."""
    spec = management.get("/api/v1/spec")["spec"] or {}
    entries = {entry["name"]: entry for entry in spec.get("endpoints", ())}
    if own := entries.get(endpoint["name"], {}).get("example"):
        values: dict[str, ExampleValue] = own
        return values
    revisions = sorted(endpoint.get("revisions", []), key=lambda revision: -revision["weight"])
    name, colon, version = revisions[0]["model"].rpartition(":") if revisions else ("", "", "")
    if not colon or "/" in name:
        return {}
    try:
        document = management.get(f"/api/v1/models/{name}/versions/{version}")
    except HeadraceError:
        return {}
    example: dict[str, ExampleValue] = document["signature"].get("example", {})
    return example


def example_body(
    inputs: list[TensorSpec], example: Mapping[str, ExampleValue] = MappingProxyType({})
) -> str:
    """Return a V2 request with one generated row, in short numbers."""
    from headrace.core.examples import example_inputs

    batched = all(spec.shape[:1] == (VARIABLE,) for spec in inputs)
    signature = ModelSignature(inputs=tuple(inputs), outputs=(), batched=batched, example=example)
    tensors = []
    for spec, array in zip(inputs, example_inputs(signature).values(), strict=True):
        data = array.reshape(-1).tolist()
        if array.dtype.kind == "f" and spec.name not in example:
            data = [round(value, 1) for value in data]
        data = [value.decode() if isinstance(value, bytes) else value for value in data]
        shape, datatype = list(array.shape), str(spec.datatype)
        tensors.append({"name": spec.name, "datatype": datatype, "shape": shape, "data": data})
    return json.dumps({"inputs": tensors}, separators=(",", ":"))


def _base64_body(inputs: list[TensorSpec]) -> str:
    """Return a V1 request in base64 with one generated row of unprintable bytes; else empty."""
    from headrace.core.examples import example_inputs

    if len(inputs) != 1 or inputs[0].datatype is not Datatype.BYTES or inputs[0].shape != (-1,):
        return ""
    signature = ModelSignature(inputs=tuple(inputs), outputs=(), batched=True)
    (array,) = example_inputs(signature).values()
    raw: bytes = array[0]
    if raw.decode().isprintable():
        return ""
    rows = [{"b64": base64.b64encode(raw).decode()}]
    return json.dumps({"instances": rows}, separators=(",", ":"))


_REPORTED_S = 2.0
_POLL_S = 0.1


def detach(
    settings: "ControlSettings", *, home: Path, flags: "StoredFlags", wait_s: float, json: bool
) -> bool:
    """Start the system in the background, print its addresses; return whether all is ready."""
    last = read_last_control_file(home)
    with progress("starting, until a test request succeeds"):
        control = start_detached(settings, timeout_s=wait_s)
    flags.save(home)
    _show_last_log_lines(last, control)
    return _announce(control, home=home, json=json)


def run_here(settings: "ControlSettings", home: Path, flags: "StoredFlags") -> int:
    """Run the control plane in this process; a thread prints the addresses once all is ready.

    The thread also stores the flags, which have then proven to be usable.

    Raises:
        FailedPreconditionError: The system did not start. Raised once all processes have stopped,
            so that the reason follows their logs.
    """
    import msgspec

    last = read_last_control_file(home)
    reader, writer = os.pipe()
    reason = ""

    def announce() -> None:
        nonlocal reason
        with os.fdopen(reader, "rb") as notices:
            line = notices.readline()
        notice = msgspec.json.decode(line) if line else {}
        reason = notice.get("error", "")
        control = read_control_file(home)
        if control is not None and notice.get("ready"):
            flags.save(home)
            _show_last_log_lines(last, control)
            _announce(control, home=home, json=False, stop_with="Ctrl-C")

    announcing = threading.Thread(target=announce, name="announce", daemon=True)
    announcing.start()
    status = run(msgspec.structs.replace(settings, notify_fd=writer))
    announcing.join(timeout=1.0)
    if status and reason:
        raise FailedPreconditionError(reason)
    return status


def change_running(
    control: "ControlFile",
    document: dict[str, Any] | None,
    *,
    home: Path,
    is_spec: bool,
    yes: bool,
    wait_s: float,
    json: bool,
) -> None:
    """Apply a spec to the running system, or add the endpoint of a model; None changes nothing."""
    from headrace.cli.base.spec_file import confirm_removals, show_applied

    api = local_management(control, home)
    say(f"already running on {home} (pid {control.pid}); its ports do not change")
    if document is None:
        _announce(control, home=home, json=json)
        return
    if is_spec:
        confirm_removals(api.get("/api/v1/spec")["spec"] or {}, document, yes=yes)
    with progress("applying, until a test request succeeds"):
        if is_spec:
            answer = api.post("/api/v1/apply", document, timeout_s=wait_s + 30, wait_s=wait_s)
        else:
            (endpoint,) = document["endpoints"]
            path = f"/api/v1/endpoints/{quote(endpoint['name'], safe='')}"
            answer = api.patch(path, endpoint, timeout_s=wait_s + 30, wait_s=wait_s)
    show_applied(answer, json=False)
    names = {endpoint["name"] for endpoint in document["endpoints"]}
    _announce(control, home=home, json=json, changed=names)


def _show_last_log_lines(last: "ControlFile | None", control: "ControlFile") -> None:
    """Print what happened to the addresses of a killed control plane."""
    if last is None:
        return
    moved = [
        f"{description} moved from {before} to {now}"
        for description, before, now in (
            ("the gateway", last.http_url, control.http_url),
            ("gRPC", last.grpc_target, control.grpc_target),
            ("metrics", last.metrics_url, control.metrics_url),
            ("console and API", last.admin_url, control.admin_url),
        )
        if before != now
    ]
    took_over = f"adopted the processes of the killed control plane (pid {last.pid})"
    say(f"{took_over}; {'; '.join(moved) or 'all ports are unchanged'}")


def _announce(
    control: "ControlFile",
    *,
    home: Path,
    json: bool,
    stop_with: str | None = None,
    changed: Collection[str] = (),
) -> bool:
    """Print addresses and endpoints that are not ready; return whether all are ready.

    Args:
        changed: Endpoints that the command changed; the request to try is for one of them.
    """
    from headrace.cli.base.connection import grpc_url
    from headrace.cli.base.output import batching_lines

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
            preferred = sorted(endpoints, key=lambda e: (e["name"] not in changed, not e["ready"]))
            shown = preferred[0]
            call = command(
                control.http_url,
                shown["name"],
                flag,
                gateway_ca=control.gateway_ca,
                example=example_of(management, shown),
            )
            lines += ["", "try it:", call]
        write("\n".join(lines))
    gateway = status["gateway"]
    if control.agents_url and not gateway["ready"] and not gateway["gateways"]:
        say(
            "no gateway is connected, and endpoints become ready with the first: on its host, "
            f"`headrace gateway --control {control.agents_url} --tls-cert ... --tls-key ... "
            "--ca-file ...`"
        )
        return True
    for endpoint in endpoints:
        if endpoint["message"] or endpoint.get("note"):
            say(f"{endpoint['name']}: {endpoint['message'] or endpoint['note']}")
    return not waiting


def _status(api: "Management") -> dict[str, Any]:
    """Return the status once ready replicas have reported how they batch, after about a second."""
    until = time.monotonic() + _REPORTED_S
    while True:
        status: dict[str, Any] = api.get("/api/v1/status")
        waits = any(
            revision.get("batching") is None
            for endpoint in status["endpoints"]
            for revision in endpoint["revisions"]
            if any(replica["state"] == "ready" for replica in revision["replicas"])
        )
        if not waits or time.monotonic() > until:
            return status
        time.sleep(_POLL_S)
