"""Spec file of a command: reading, completion from profiles, and results of an apply."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from headrace.cli.base.model_store import ModelStore, model_store
from headrace.cli.base.output import NOT_READY, say, show_answer
from headrace.cli.base.profiles import read_profiles
from headrace.core import (
    FailedPreconditionError,
    InvalidArgumentError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from headrace.cli.base.connection import CommandTarget
    from headrace.core.spec.parse import SystemSpec


def is_spec(path: Path) -> bool:
    """Whether `path` is a spec file, by its name; of `.json` files, those that are no model."""
    suffix = path.suffix.lower()
    if suffix not in {".yaml", ".yml", ".json"} or not path.is_file():
        return False
    return suffix != ".json" or not _runtime_of(path)


def _runtime_of(path: Path) -> str:
    """Return the runtime that recognises a file as a model; empty for none."""
    from headrace.runtimes import detect_runtime

    try:
        return detect_runtime(path).name
    except UnsupportedModelError:
        return ""


def read_spec(file: Path, *, allows_uris: bool = False) -> "SystemSpec":
    """Return the spec in `file`, with absolute model paths.

    Args:
        allows_uris: Whether the caller handles models that are URIs.

    Raises:
        InvalidArgumentError: The spec has mistakes; the message lists all of them.
    """
    from headrace.cli.base.sources import uris_in
    from headrace.core.spec.parse import SpecError, parse_spec

    try:
        text = file.read_text(encoding="utf-8")
        spec = parse_spec(text, base_dir=file.absolute().parent)
    except (UnicodeDecodeError, SpecError) as error:
        is_text = isinstance(error, SpecError)
        msg = f"{file}: {error}" if is_text else f"{file} is not UTF-8 text: {error}"
        if runtime := _runtime_of(file):
            msg = (
                f"{file} is a model of the runtime '{runtime}', not a spec; serve it with "
                f"`headrace up {file}`"
            )
        raise InvalidArgumentError(msg) from None
    if not allows_uris and (uris := uris_in(spec.document())):
        msg = (
            f"{file}: {uris[0]} is a URI, which this command does not fetch; store it with "
            "`headrace models push NAME URI`, and name that version"
        )
        raise InvalidArgumentError(msg)
    return spec


def tuned(
    document: Mapping[str, Any], *, home: Path, store: ModelStore, is_here: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the document, and a line for each setting from a profile.

    Args:
        home: Directory with the profiles.
        store: Knows the models that the document names by reference.
        is_here: Whether it will be served on this machine.

    Raises:
        FailedPreconditionError: A model has no profile that holds here.
    """
    from headrace.core.spec.parse import is_model_path
    from headrace.engine import usable_cores
    from headrace.optimize.profiling.document import Machine, fill, fitting, model_of
    from headrace.registry import is_repository, read_content
    from headrace.runtimes.optimized.processor import this_processor

    cores = usable_cores()
    machine = Machine(processor=this_processor(), cores=cores) if is_here else None
    endpoints: list[dict[str, Any]] = []
    lines: list[str] = []
    for entry in document.get("endpoints", []):
        model, name = model_of(entry), str(entry.get("name"))
        if model is None:
            endpoints.append(dict(entry))
            lines.append(f"{name}: external upstream, not changed")
            continue
        path = Path(model)
        if not is_model_path(model):
            digest = str(store.get(model)["digest"])
        elif is_repository(path):
            msg = (
                f"{path} is a repository of several models, which --tuned does not support; push "
                "its models with `headrace models push`, and reference each"
            )
            raise FailedPreconditionError(msg)
        else:
            digest = str(read_content(path).digest)
        command = f"headrace profile {model}"
        profiles = read_profiles(home, digest)
        profile = fitting(profiles, model=model, machine=machine, command=command)
        changed, filled = fill(entry, profile, cores=cores if is_here else None)
        endpoints.append(changed)
        lines.append(
            f"{name}: {len(filled)} settings from the profile of {profile.created_at} of {model} "
            f"({profile.cores} cores of {profile.processor.name})"
        )
        lines += [
            f"  {setting.path} = {setting.value}{f': {setting.why}' if setting.why else ''}"
            for setting in filled
        ]
        if not is_here:
            lines.append(f"  the processor that serves {name} is unknown and may differ")
    return {**document, "endpoints": endpoints}, lines


def tuned_document(document: dict[str, Any], target: "CommandTarget") -> dict[str, Any]:
    """Complete the document from profiles, and print what was added and why.

    Raises:
        FailedPreconditionError: A model has no profile that holds where it will be served.
    """
    filled, lines = tuned(
        document, home=target.home, store=model_store(target), is_here=not target.is_remote
    )
    for line in lines:
        say(line)
    return filled


def confirm_removals(stored: Mapping[str, Any], document: Mapping[str, Any], *, yes: bool) -> None:
    """Name what `document` removes from the stored spec, and ask on a terminal.

    Raises:
        FailedPreconditionError: Something is removed, there is no terminal, and `yes` is not set.
        Abort: The user declined.
    """
    removed = [
        f"{kind} '{entry['name']}'"
        for key, kind in (("endpoints", "endpoint"), ("streams", "stream"))
        for entry in stored.get(key) or ()
        if entry["name"] not in {line["name"] for line in document.get(key) or ()}
    ]
    if not removed:
        return
    text = f"the spec removes {', '.join(removed)}, which it does not contain"
    if yes:
        say(text)
    elif sys.stdin.isatty():
        say(text)
        typer.confirm("Remove?", abort=True, err=True)
    else:
        msg = (
            f"{text}; confirm with --yes, or change one endpoint with `headrace up MODEL --name "
            "ENDPOINT`"
        )
        raise FailedPreconditionError(msg)


def show_applied(answer: dict[str, Any], *, json: bool) -> None:
    """Print what an apply changed, and what is not ready.

    Raises:
        Exit: An object is not ready after the wait.
    """
    show_answer(answer, *changes_text(answer), *not_ready_text(answer), json=json)
    if not answer.get("ready", True):
        raise typer.Exit(NOT_READY)


def not_ready_text(answer: dict[str, Any]) -> list[str]:
    """Return what is not ready after an apply that waited, one line each."""
    return [f"not ready: {name}: {reason}" for name, reason in answer.get("not_ready", {}).items()]


def changes_text(answer: dict[str, Any]) -> list[str]:
    """Return the changes of an apply, and its warnings, one line each."""
    warnings = [f"warning: {warning}" for warning in answer.get("warnings", ())]
    return [*map(str, answer.get("changes") or ["no changes"]), *warnings]
