"""`headrace apply`, `check`, `diff` and `schema`: the spec file."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import difflib
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.model_store import model_store, with_stored_models
from headrace.cli.base.options import (
    ControlPlaneOptions,
    EndpointName,
    Json,
    SpecArgument,
    SpecFile,
    Tuned,
    UnreadHome,
    WaitS,
    Yes,
    one_spec_file,
    option,
)
from headrace.cli.base.output import (
    FAILED,
    USAGE,
    progress,
    report,
    say,
    show,
    show_answer,
    write_json,
)
from headrace.cli.base.sources import with_pushed_models
from headrace.cli.base.spec_file import (
    changes_text,
    confirm_removals,
    read_spec,
    show_applied,
    tuned_document,
)
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
)
from headrace.core.redact import HIDDEN

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget
    from headrace.core.spec.parse import SystemSpec


def sent_spec(file: Path, target: "CommandTarget", *, tuned: bool) -> dict[str, Any]:
    """Return the spec in `file` for the control plane; models are uploaded to a remote one.

    Models of URIs and Hugging Face folders are stored as versions there.

    Raises:
        InvalidArgumentError: The spec has mistakes, or a model cannot be stored there.
        FailedPreconditionError: A model has no profile that holds where it will be served.
    """
    from headrace.core.spec.parse import SystemSpec

    document = read_spec(file, allows_uris=True).document()
    document = with_pushed_models(document, lambda: model_store(target), home=target.home)
    if tuned:
        document = SystemSpec.model_validate(tuned_document(document, target)).document()
    return with_stored_models(target.management(), document) if target.is_remote else document


def apply(
    spec: SpecArgument = None,
    *,
    file: SpecFile = None,
    wait: Annotated[
        bool, option("Wait until endpoints are ready and streams run.", "--wait")
    ] = False,
    wait_s: WaitS = 120.0,
    tuned: Tuned = False,
    yes: Yes = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Apply a spec file to the running system without losing requests.

    The spec replaces the desired state: endpoints and streams that it does not contain are removed,
    after a question or with --yes. An endpoint keeps the version that a later rollout led to until
    its `model` or `versions` in the spec change. With --wait, the new version of a rollout must be
    ready.

    Local models are uploaded first if the control plane runs on another machine. Models of URIs are
    downloaded and stored as versions; unchanged content gives the same version.

    For example:

        headrace apply -f headrace.yaml --wait

        headrace apply -f headrace.yaml --server http://gpu-box:8080

        headrace apply -f headrace.yaml --tuned
    """
    target = plane.target()
    document = sent_spec(one_spec_file(spec, file), target, tuned=tuned)
    confirm_removals(target.management().get("/api/v1/spec")["spec"] or {}, document, yes=yes)
    with progress("waiting until everything is ready" if wait else "applying"):
        answer = target.management().post(
            "/api/v1/apply",
            document,
            timeout_s=wait_s + 30,
            wait_s=wait_s if wait else None,
        )
    show_applied(answer, json=json)


def check(
    spec: SpecArgument = None, *, file: SpecFile = None, home: UnreadHome = DEFAULT_HOME
) -> None:
    """Validate a spec file and report all errors with their location.

    Settings that depend on a model are checked if the registry of --home has the model.

    For example:

        headrace check headrace.yaml
    """
    from headrace.control.desired.resolve import Resolver
    from headrace.core.spec.access import unused_tiers
    from headrace.core.spec.parse import SpecError, SpecMistake
    from headrace.registry import Registry
    from headrace.runtimes import inspect_model

    path = one_spec_file(spec, file)
    content = read_spec(path, allows_uris=True)
    resolver = Resolver(
        registry=Registry(home),
        inspect=inspect_model,
        spec=content,
        max_body_bytes=content.gateway.max_body_bytes,
    )
    mistakes, not_checked = resolver.check_stored()
    if tiers := unused_tiers(content.document()):
        mistakes = [SpecMistake(place="tiers", message=tiers), *mistakes]
    if mistakes:
        msg = f"{path}: {SpecError(mistakes)}"
        raise InvalidArgumentError(msg)
    for warning in _warnings(content):
        say(f"warning: {warning}")
    for note in not_checked:
        say(f"not checked: {note}")
    count, streams = len(content.endpoints), len(content.streams)
    more = f", {streams} stream{'' if streams == 1 else 's'}" if streams else ""
    say(f"{path}: valid, {count} endpoint{'' if count == 1 else 's'}{more}")


def _warnings(spec: "SystemSpec") -> Iterator[str]:
    """Yield warnings: files and secrets that are missing here, streams without order."""
    from headrace.control.base.settings import resolve_references
    from headrace.core.spec.parse import is_model_path
    from headrace.core.spec.stream_agreement import is_unordered

    for i, endpoint in enumerate(spec.endpoints):
        for model in (version.model for version in endpoint.split()):
            if model is not None and is_model_path(model) and not Path(model).exists():
                yield f"endpoints[{i}]: the model '{model}' is not on this machine"
    for i, stream in enumerate(spec.streams):
        if stream.bounds.max > 1 and is_unordered(stream.source.broker):
            yield (
                f"streams[{i}]: its workers share a topic record by record, so records of one key "
                "may be answered out of order; if that matters, use 1 worker, or another broker or "
                "subscription"
            )
    for receiver in spec.alerts.receivers:
        way = receiver.webhook or receiver.slack or receiver.email
        files = (getattr(way, key, None) for key in ("url_file", "token_file", "password_file"))
        texts = [getattr(way, "url", None), *(f"file:{path}" for path in files if path)]
        for text in filter(None, texts):
            try:
                resolve_references(text)
            except HeadraceError as error:
                yield (
                    f"receiver '{receiver.name}' cannot be used from here: {error}; `headrace "
                    f"alerts test {receiver.name}` sends a message from the running system"
                )


def scale(
    endpoint: EndpointName,
    *,
    replicas: Annotated[int, option("Replicas per version.", min=1)],
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Change only the number of an endpoint's replicas.

    For example:

        headrace scale fraud --replicas 4
    """
    api = plane.connect()
    stored = api.get("/api/v1/spec")["spec"] or {}
    entry = next((e for e in stored.get("endpoints", ()) if e["name"] == endpoint), None)
    if entry is None:
        raise NotFoundError(f"no endpoint '{endpoint}'; `headrace status` lists them")
    blocking_key = next((key for key in ("autoscale", "upstream") if entry.get(key)), None)
    if blocking_key is not None or HIDDEN in str(entry):
        reason = (
            f"has '{blocking_key}'" if blocking_key else "has secrets that the API does not show"
        )
        msg = f"endpoint '{endpoint}' {reason}; change its spec file and apply that"
        raise FailedPreconditionError(msg)
    path = f"/api/v1/endpoints/{quote(endpoint)}"
    generation = api.get(path)["generation"]
    show_applied(api.put(path, entry | {"replicas": replicas}, generation=generation), json=json)


def remove(endpoint: EndpointName, *, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Stop serving an endpoint; all others are unchanged, and its model versions stay.

    For example:

        headrace remove fraud
    """
    api = plane.connect()
    show_applied(api.delete(f"/api/v1/endpoints/{quote(endpoint, safe='')}"), json=json)


def schema() -> None:
    """Print the JSON Schema of the spec file, for editors and CI.

    For example:

        headrace schema > headrace.schema.json
    """
    from headrace.core.spec.parse import json_schema

    write_json(json_schema())


CHANGES = 1
_CONTEXT_LINES = 3
_ANY_WIDTH = 1 << 20
_STYLES = {"+": "green", "-": "red", "@": "cyan"}


def diff(
    spec: SpecArgument = None,
    *,
    file: SpecFile = None,
    tuned: Tuned = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show what `apply` would change, without changing what is served.

    Model files are stored as versions, as by `apply`.

    Exit status, as for `kubectl diff`: 0 no changes; 1 changes; 2 invalid spec or command line; 3
    not running.

    For example:

        headrace diff -f headrace.yaml

        headrace diff -f headrace.yaml || headrace apply -f headrace.yaml --wait
    """
    path = one_spec_file(spec, file)
    try:
        target = plane.target()
        document = sent_spec(path, target, tuned=tuned)
        with progress("comparing"):
            answer = target.management().post("/api/v1/diff", document, timeout_s=300.0)
    except HeadraceError as error:
        code = report(error, debug=False)
        raise typer.Exit(USAGE if code == FAILED else code) from None
    text = diff_text(answer)
    if text.plain and not json:
        show(text)
    show_answer(answer, *changes_text(answer), json=json)
    if answer["changes"]:
        raise typer.Exit(CHANGES)


def diff_text(document: Mapping[str, Any]) -> "Text":
    """Return a coloured unified diff of the endpoints' parts of the spec."""
    lines = [
        line
        for name, change in document["endpoints"].items()
        for line in difflib.unified_diff(
            _yaml_lines(change["before"]),
            _yaml_lines(change["after"]),
            fromfile=f"{name} (now)",
            tofile=f"{name} (then)",
            n=_CONTEXT_LINES,
            lineterm="",
        )
    ]
    return Text("\n").join(
        Text(line, style="bold" if line[:3] in {"---", "+++"} else _STYLES.get(line[:1], ""))
        for line in lines
    )


def _yaml_lines(entry: Mapping[str, Any] | None) -> list[str]:
    if entry is None:
        return []
    from ruamel.yaml import YAML

    yaml = YAML(typ="safe")
    yaml.default_flow_style = False
    yaml.width = _ANY_WIDTH  # a wrapped path could not be searched for
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]  # its types lag behind
    stream = io.StringIO()
    yaml.dump(dict(entry), stream)
    return stream.getvalue().splitlines()
