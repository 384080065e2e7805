"""Parser of the spec file, `headrace.yaml`, that reports all mistakes.

Not imported by `headrace.core` itself: replicas must not pay for pydantic.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from headrace.core.errors import InvalidArgumentError
from headrace.core.model_uri import is_model_uri, parse_model_uri
from headrace.core.names import NAME_PATTERN, VERSION_PATTERN
from headrace.core.redact import literal_secrets
from headrace.core.spec.jobs import JobSpec, with_absolute_job_paths
from headrace.core.spec.mistakes import SpecError, mistakes_of, shown, with_line
from headrace.core.spec.models import (
    AGREEMENT_CHECKED,
    EndpointSpec,
    GatewaySpec,
    SystemSpec,
    VersionSpec,
    disagreements,
    json_schema,
)
from headrace.core.spec.stream_agreement import without_removed
from headrace.core.spec.streams import StreamSpec
from headrace.core.spec.yaml import SpecMistake, read_yaml

__all__ = [
    "EndpointSpec",
    "GatewaySpec",
    "JobSpec",
    "SpecError",
    "SpecMistake",
    "StreamSpec",
    "SystemSpec",
    "VersionSpec",
    "is_model_path",
    "json_schema",
    "parse_spec",
    "read_document",
]

_REMEDY: Final = (
    "use `${NAME}` for an environment variable, or the setting that names a file, if one exists"
)
_REFERENCE: Final = re.compile(f"{NAME_PATTERN[:-1]}(:{VERSION_PATTERN[1:-1]})?$")


def parse_spec(
    source: str | Mapping[str, Any],
    *,
    base_dir: Path | None = None,
    exists: Callable[[Path], bool] = Path.exists,
    secrets_in: Mapping[str, Any] | None = None,
    in_force: Mapping[str, Any] | None = None,
) -> SystemSpec:
    """Return the spec in `source`, with absolute model paths.

    Args:
        source: YAML or JSON text, or the document as plain data.
        base_dir: Base of relative model paths, for a spec file, whose models may also be URIs. None
            allows absolute paths and registry references only.
        exists: Whether a file exists; decides if `digits.onnx` is a path or a registry name.
        secrets_in: Document whose literal secrets may stay. None refuses every literal secret.
        in_force: The stored spec that `source` is, or changes. What an earlier version accepted in
            it may stay: literal secrets, and parts that do not agree. None refuses these.

    Raises:
        SpecError: With every mistake, its location, and its line if `source` is text.
    """
    if isinstance(source, str):
        document = read_yaml(source)
        if document.mistakes and document.value is None:
            raise SpecError(document.mistakes)
        value, lines, mistakes = document.value, document.lines, document.mistakes
    else:
        value, lines, mistakes = source, {}, []
    if not isinstance(value, Mapping):
        actual = "nothing" if value is None else f"a {type(value).__name__}"
        message = f"must be a mapping with 'version' and 'endpoints', but holds {actual}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    tolerated = {text for _, text, _ in literal_secrets(secrets_in or in_force)}
    field_mistakes = [
        SpecMistake(place=path, message=f"contains {description} in plain text; {_REMEDY}")
        for path, text, description in literal_secrets(value)
        if text not in tolerated
    ]
    value = _with_absolute_files(_with_absolute_models(value, base_dir, exists), base_dir)
    value = with_absolute_job_paths(value, base_dir)
    accepted = {_identity(mistake, in_force or {}) for mistake in disagreements(in_force)}
    field_mistakes += _model_mistakes(value, allows_uris=base_dir is not None)
    field_mistakes += [
        mistake for mistake in disagreements(value) if _identity(mistake, value) not in accepted
    ]
    spec: SystemSpec | None = None
    try:
        spec = SystemSpec.model_validate(
            without_removed(value), context={AGREEMENT_CHECKED: in_force is not None}
        )
    except ValidationError as error:
        field_mistakes = mistakes_of(error.errors(), SystemSpec) + field_mistakes
    mistakes = [
        *mistakes,
        *(with_line(mistake, lines) for mistake in dict.fromkeys(field_mistakes)),
    ]
    if mistakes or spec is None:
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0))
    return spec


def read_document(text: str, *, base_dir: Path) -> dict[str, Any]:
    """Return the document in a spec file with absolute paths; it may have mistakes.

    Raises:
        SpecError: The text is no YAML mapping.
    """
    document = read_yaml(text)
    if document.mistakes:
        raise SpecError(document.mistakes)
    value = document.value
    if not isinstance(value, Mapping):
        raise SpecError([SpecMistake(place="", message="must be a mapping")])
    value = _with_absolute_files(_with_absolute_models(value, base_dir, Path.exists), base_dir)
    return with_absolute_job_paths(value, base_dir)


def _identity(mistake: SpecMistake, document: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the parts of a mistake that do not depend on the positions of list items."""
    part = re.match(r"(\w+)\[(\d+)\]", mistake.place)
    item = document[part[1]][int(part[2])] if part else None
    name = str(item.get("name")) if isinstance(item, Mapping) else ""
    path, message = (re.sub(r"\[\d+\]", "[]", text) for text in (mistake.place, mistake.message))
    return name, path, message


def is_model_path(model: str) -> bool:
    """Whether a parsed spec's `model` is a file or directory; else it is a registry reference."""
    return model.startswith("/")


def _with_absolute_models(
    document: Mapping[str, Any], base_dir: Path | None, exists: Callable[[Path], bool]
) -> dict[str, Any]:
    """Return `document` with every model path made absolute; other models do not change."""

    def absolute(item: object) -> object:
        if not isinstance(item, Mapping):
            return item
        model, versions = item.get("model"), item.get("versions")
        changed = dict(item)
        if isinstance(model, str):
            changed["model"] = _absolute(model, base_dir, exists)
        if isinstance(versions, list | tuple):
            changed["versions"] = [absolute(version) for version in versions]
        return changed

    lists = {key: document.get(key) for key in ("endpoints", "streams", "jobs")}
    return {
        **document,
        **{
            key: [absolute(item) for item in items]
            for key, items in lists.items()
            if isinstance(items, list | tuple)
        },
    }


def _with_absolute_files(value: object, base_dir: Path | None) -> Any:  # noqa: ANN401  # as it came
    """Return `value` with absolute paths in names that end in `_file`, and in trusted keys."""
    if isinstance(value, list | tuple):
        return [_with_absolute_files(item, base_dir) for item in value]
    if not isinstance(value, Mapping):
        return value
    return {
        key: _absolute_file(item, base_dir)
        if isinstance(key, str) and (key.endswith("_file") or key == "trusted_keys")
        else _with_absolute_files(item, base_dir)
        for key, item in value.items()
    }


def _absolute_file(item: object, base_dir: Path | None) -> object:
    if isinstance(item, list | tuple):
        return [_absolute_file(part, base_dir) for part in item]
    if not isinstance(item, str) or not item or "\0" in item:
        return item
    path = Path(item).expanduser()
    return str(path if path.is_absolute() or base_dir is None else base_dir.absolute() / path)


def _absolute(model: str, base_dir: Path | None, exists: Callable[[Path], bool]) -> str:
    if model.startswith("~/"):
        return str(Path(model).expanduser())
    if model.startswith("/") or is_model_uri(model):
        return model
    if base_dir is None or "\0" in model:
        return model
    path = base_dir.absolute() / model
    if "/" in model or model in {".", ".."} or _REFERENCE.fullmatch(model) is None or exists(path):
        return str(path)
    return model


def _model_mistakes(document: Mapping[str, Any], *, allows_uris: bool) -> list[SpecMistake]:
    """Return mistakes for models that are no absolute path, NAME[:VERSION] or valid URI."""
    models: list[tuple[str, object]] = []
    endpoints = document.get("endpoints")
    for i, endpoint in enumerate(endpoints if isinstance(endpoints, list) else []):
        item = endpoint if isinstance(endpoint, Mapping) else {}
        versions = item.get("versions")
        models.append((f"endpoints[{i}].model", item.get("model")))
        for j, version in enumerate(versions if isinstance(versions, list) else []):
            model = version.get("model") if isinstance(version, Mapping) else None
            models.append((f"endpoints[{i}].versions[{j}].model", model))
    for key in ("streams", "jobs"):
        items = document.get(key)
        for i, entry in enumerate(items if isinstance(items, list) else []):
            models.append(
                (f"{key}[{i}].model", entry.get("model") if isinstance(entry, Mapping) else None)
            )
    return [
        SpecMistake(place=path, message=message)
        for path, model in models
        if (message := _model_mistake(model, allows_uris=allows_uris))
    ]


def _model_mistake(model: object, *, allows_uris: bool) -> str:
    """Return why a model cannot be used; empty if it can, or if its field reports it."""
    if not isinstance(model, str) or not model:
        return ""
    if is_model_uri(model):
        if not allows_uris:
            return (
                f"{shown(model)} is a URI, which only commands fetch; store it with "
                "`headrace models push NAME URI`, and name that version"
            )
        try:
            parse_model_uri(model)
        except InvalidArgumentError as error:
            return str(error)
        return ""
    if "\0" not in model and (is_model_path(model) or _REFERENCE.fullmatch(model)):
        return ""
    return (
        f"{shown(model)} is neither an absolute path nor a registry reference NAME[:VERSION]"
        " (relative paths and URIs are allowed in spec files only)"
    )
