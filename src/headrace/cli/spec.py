"""`headrace apply`, `check` and `schema`: the spec file."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.failures import NOT_READY
from headrace.cli.options import DEFAULT_HOME, Home, Json, Server, Tuned

if TYPE_CHECKING:
    from headrace.cli.connection import Target
    from headrace.cli.management import Management
    from headrace.core.spec import SystemSpec

_File = Annotated[
    Path, typer.Argument(help="The spec file.", exists=True, dir_okay=False, show_default=False)
]


def apply(
    file: Annotated[
        Path,
        typer.Option(
            "--file", "-f", help="The spec file.", exists=True, dir_okay=False, show_default=False
        ),
    ],
    *,
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when endpoints are ready, and streams run.")
    ] = False,
    wait_s: Annotated[
        float, typer.Option("--wait-s", min=0.1, help="Seconds that --wait waits.")
    ] = 120.0,
    tuned: Tuned = False,
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Make the running system what the spec file says; no request is lost on the way.

    Models on this machine are uploaded first where the control plane is elsewhere.

    For example:

        headrace apply -f headrace.yaml --wait

        headrace apply -f headrace.yaml --server http://gpu-box:8080

        headrace apply -f headrace.yaml --tuned
    """
    from headrace.cli.connection import find_target
    from headrace.cli.output import progress

    spec = read_spec(file)
    target = find_target(server, home)
    if tuned:
        spec = tuned_spec(spec, target)
    api = target.management()
    document = document_for(api, spec)
    with progress("waiting until everything is ready" if wait else "applying"):
        answer = api.post(
            "/api/v1/apply",
            document,
            timeout_s=wait_s + 30,
            wait_s=wait_s if wait else None,
        )
    tell_applied(answer, json=json)


def tuned_spec(spec: "SystemSpec", target: "Target") -> "SystemSpec":
    """The spec with what it leaves open filled in from profiles; says what that is, and why.

    Raises:
        FailedPreconditionError: A model has no profile that holds where it will be served.
    """
    from headrace.core.spec import SystemSpec

    return SystemSpec.model_validate(tuned_document(spec.document(), target))


def tuned_document(document: dict[str, Any], target: "Target") -> dict[str, Any]:
    """As `tuned_spec`, as plain data."""
    from headrace.cli.model_store import model_store
    from headrace.cli.output import say
    from headrace.cli.tuned import tuned

    filled, lines = tuned(
        document, home=target.home, store=model_store(target), is_here=not target.is_remote
    )
    for line in lines:
        say(line)
    return filled


def document_for(api: "Management", spec: "SystemSpec") -> dict[str, Any]:
    """The spec as the control plane can read it; models are uploaded to one that is elsewhere.

    Raises:
        InvalidArgumentError: A model cannot be stored there.
    """
    if not api.is_remote:
        return spec.document()
    from headrace.cli.uploads import with_stored_models

    return with_stored_models(api, spec.document())


def tell_applied(answer: dict[str, Any], *, json: bool) -> None:
    """Say what an apply changed, and what is not ready.

    Raises:
        Exit: Something is not ready though it was waited for.
    """
    from headrace.cli.output import say, write_json

    if json:
        write_json(answer)
    else:
        for line in (*changes_text(answer), *not_ready_text(answer)):
            say(line)
    if not answer.get("ready", True):
        raise typer.Exit(NOT_READY)


def not_ready_text(answer: dict[str, Any]) -> list[str]:
    """What is not ready after an apply that waited, a line each."""
    return [f"not ready: {name}: {why}" for name, why in answer.get("not_ready", {}).items()]


def changes_text(answer: dict[str, Any]) -> list[str]:
    """The changes that an apply made, and its warnings, a line each."""
    warnings = [f"warning: {warning}" for warning in answer.get("warnings", ())]
    return [*map(str, answer.get("changes") or ["nothing to change"]), *warnings]


def check(file: _File) -> None:
    """Read a spec file and report every mistake in it, with its place.

    For example:

        headrace check headrace.yaml
    """
    from headrace.cli.output import say

    spec = read_spec(file)
    count, streams = len(spec.endpoints), len(spec.streams)
    more = f", {streams} stream{'' if streams == 1 else 's'}" if streams else ""
    say(f"{file}: no mistakes, {count} endpoint{'' if count == 1 else 's'}{more}")


def schema() -> None:
    """Print the JSON Schema of the spec file, for editors and CI.

    For example:

        headrace schema > headrace.schema.json
    """
    from headrace.cli.output import write_json
    from headrace.core.spec import json_schema

    write_json(json_schema())


def read_spec(file: Path) -> "SystemSpec":
    """The spec in `file`, its model paths absolute.

    Raises:
        InvalidArgumentError: It has mistakes; the message lists all of them.
    """
    from headrace.core import InvalidArgumentError
    from headrace.core.spec import SpecError, parse_spec

    try:
        text = file.read_text(encoding="utf-8")
        return parse_spec(text, base_dir=file.absolute().parent)
    except UnicodeDecodeError as error:
        msg = f"{file} is no UTF-8 text: {error}"
        raise InvalidArgumentError(msg) from None
    except SpecError as error:
        msg = f"{file}: {error}"
        raise InvalidArgumentError(msg) from None
