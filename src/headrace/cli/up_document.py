"""Spec that `headrace up` serves, out of a model, a directory or a spec file, and its options."""

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
    slo_p99: str | None = None,
    max_replicas: int | None = None,
    rows_independent: bool = False,
    home: Path,
    has_state: bool = False,
) -> dict[str, Any] | None:
    """The spec that `target` means, as plain data; None goes on with what is stored.

    Args:
        name: Of the endpoint of a model; this and the next four are for a model only.
        slo_p99: `slo.latency_s` of the endpoint, with its unit: 150ms or 0.15s.
        max_replicas: `autoscale.max_replicas` of the endpoint.
        rows_independent: `batching.rows_independent` of the endpoint.
        has_state: Whether the state is elsewhere than in `home`.

    Raises:
        BadParameter: There is no target, or an option does not fit it.
    """
    options = {
        "--name": name,
        "--replicas": replicas,
        "--slo-p99": slo_p99,
        "--max-replicas": max_replicas,
        "--rows-independent": rows_independent or None,
    }
    used = [flag for flag, value in options.items() if value is not None]
    if target is None:
        if Path(SPEC_NAME).is_file():
            target = Path(SPEC_NAME)
        elif has_state or any((home / file).is_file() for file in _STATE_FILES):
            if used:
                msg = "what ran last goes on as it was; name a model or a spec file"
                raise typer.BadParameter(msg, param_hint=used[0])
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
        from headrace.cli.spec import read_spec

        if used:
            key = _KEYS[used[0]]
            msg = f"a spec file says this itself; set `{key}` of the endpoint in {target}"
            raise typer.BadParameter(msg, param_hint=used[0])
        return read_spec(target).document()
    document = _from_model(
        target, name=name, replicas=replicas, slo_p99=slo_p99, max_replicas=max_replicas
    )
    if rows_independent:
        document["endpoints"][0]["batching"] = {"rows_independent": True}
    return document


def _from_model(
    path: Path,
    *,
    name: str | None,
    replicas: int | None,
    slo_p99: str | None,
    max_replicas: int | None,
) -> dict[str, Any]:
    from headrace.cli.naming import name_from

    endpoint: dict[str, Any] = {"name": name or name_from(path), "model": str(path.absolute())}
    if replicas is not None:
        endpoint["replicas"] = replicas
    if slo_p99 is not None:
        endpoint["slo"] = {"latency_s": _latency_s(slo_p99)}
    if max_replicas is not None:
        if replicas is not None and replicas > max_replicas:
            msg = f"{max_replicas} is less than --replicas {replicas}, which it begins with"
            raise typer.BadParameter(msg, param_hint="--max-replicas")
        endpoint["autoscale"] = {"max_replicas": max_replicas}
    return {"version": 1, "endpoints": [endpoint]}


_KEYS = {
    "--name": "name",
    "--replicas": "replicas",
    "--slo-p99": "slo: {latency_s: 0.15}",
    "--max-replicas": "autoscale: {max_replicas: 4}",
    "--rows-independent": "batching: {rows_independent: true}",
}


def _latency_s(text: str) -> float:
    """The latency that `--slo-p99` gives, within what a spec takes."""
    from pydantic import ValidationError

    from headrace.cli.quantities import seconds
    from headrace.core.spec_base import parsed
    from headrace.core.spec_rollout import SloSpec

    flag = "--slo-p99"
    if text.strip()[-1:].isdigit():  # elsewhere these are seconds: 150 would be an SLO of minutes
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
