"""What does `headrace up` serve? The spec that a model, a directory or a file means."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Any

import typer

SPEC_NAME = "headrace.yaml"
_STATE_FILES = ("state.db", "state.json")
_SPEC_SUFFIXES = {".yaml", ".yml", ".json"}


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


def with_code(document: dict[str, Any]) -> dict[str, Any]:
    """`document` whose endpoints may all have models that run their authors' code."""
    endpoints = [{**entry, "allow_code": True} for entry in document.get("endpoints", [])]
    return {**document, "endpoints": endpoints}


def with_tuning(document: dict[str, Any] | None, home: Path) -> dict[str, Any]:
    """`document` with what it leaves open filled in from profiles."""
    from headrace.cli.connection import Target
    from headrace.cli.spec import tuned_document

    if document is None:
        msg = "what ran last goes on as it was; name a spec or a model"
        raise typer.BadParameter(msg, param_hint="--tuned")
    return tuned_document(document, Target(home=home))
