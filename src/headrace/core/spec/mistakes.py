"""Mistakes of a document, each with its location, its line, and a suggestion."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from headrace.core.errors import InvalidArgumentError
from headrace.core.redact import redact, redact_text
from headrace.core.spec.base import model_of
from headrace.core.spec.part import SpecPart
from headrace.core.spec.yaml import Place, SpecMistake, show_place

_SHOWN_INPUT: Final = 60


class SpecError(InvalidArgumentError):
    """The spec is invalid; `mistakes` holds all of its mistakes."""

    def __init__(self, mistakes: Sequence[SpecMistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{count} mistake{'s' if count > 1 else ''} in the spec"
        super().__init__("\n  ".join([f"{head}:", *map(str, self.mistakes)]))


def mistakes_of(
    error: ValidationError, root: type[BaseModel], *, show: Callable[[object], str] | None = None
) -> list[SpecMistake]:
    """Return the mistakes of a document that should have been a `root`.

    Args:
        show: Formats a value; None shows it as written.
    """
    return [
        _mistake(detail, root, show or shown) for detail in error.errors() if not _is_echo(detail)
    ]


def without_keys(mistake: SpecMistake, root: type[BaseModel]) -> SpecMistake:
    """Return `mistake` with `*` for each part of its location that is not a field below `root`."""
    names: set[str] = set()
    _add_fields(root, names)
    path = re.sub(
        r"[^.\[\]]+", lambda m: m[0] if m[0] in names or m[0].isdigit() else "*", mistake.place
    )
    return SpecMistake(place=path, message=mistake.message, line=mistake.line)


def with_line(mistake: SpecMistake, lines: Mapping[Place, int]) -> SpecMistake:
    """Return `mistake` with the line of its location, or of the nearest parent with a line."""
    by_text = {show_place(path): line for path, line in lines.items()}
    nearest = mistake.place
    while nearest not in by_text and nearest:
        nearest = nearest[: max(nearest.rfind("."), nearest.rfind("["), 0)]
    line = by_text.get(nearest)
    return SpecMistake(place=mistake.place, message=mistake.message, line=line)


def shown(value: object) -> str:
    """Return `value` as it was written, without secrets, truncated if long."""
    text = redact_text(repr(redact(value)))
    return text if len(text) <= _SHOWN_INPUT else f"{text[:_SHOWN_INPUT]}…"


def _is_echo(detail: ErrorDetails) -> bool:
    """Whether a mistake only repeats others: the whole spec's, or that of a list they emptied."""
    remaining = detail.get("ctx", {}).get("actual_length")
    emptied = detail["type"] == "too_short" and remaining != len(detail["input"])
    return not detail["loc"] or emptied


def _mistake(
    detail: ErrorDetails, root: type[BaseModel], show: Callable[[object], str]
) -> SpecMistake:
    loc = detail["loc"]
    match detail["type"]:
        case "extra_forbidden":
            message = f"is not a setting{_did_you_mean(loc, root)}"
        case "missing":
            message = "is missing"
        case "string_pattern_mismatch":
            pattern = detail.get("ctx", {}).get("pattern")
            message = f"is {show(detail['input'])}, which does not match {pattern}"
        case "tuple_type" | "list_type":
            message = f"should be a list, got {show(detail['input'])}"
        case "union_tag_invalid":
            expected_tags = detail.get("ctx", {}).get("expected_tags")
            tag = detail.get("ctx", {}).get("discriminator", "'kind'").strip("'")
            loc = (*loc, tag)
            message = f"is {show(detail['input'].get(tag))}; allowed values: {expected_tags}"
        case "union_tag_not_found":
            message = f"needs {detail.get('ctx', {}).get('discriminator')}, which selects its kind"
        case "model_type" | "dict_type":
            message = f"should be a mapping, got {show(detail['input'])}"
        case _:
            text = detail["msg"].removeprefix("Input ")
            message = f"{text}, got {show(detail['input'])}"
    return SpecMistake(place=show_place(loc), message=message)


def _add_fields(model: type[BaseModel], names: set[str]) -> None:
    """Add the names of all fields below `model`."""
    if names.issuperset(model.model_fields):
        return
    names.update(model.model_fields)
    for field in model.model_fields.values():
        for inner in _models_in(field.annotation):
            _add_fields(inner, names)


def _did_you_mean(loc: Place, root: type[BaseModel]) -> str:
    model = _model_at(loc[:-1], root)
    field_names = list(model.model_fields) if model else []
    close = difflib.get_close_matches(str(loc[-1]), field_names, n=1)
    return (
        f"; did you mean '{close[0]}'?"
        if close
        else f"; allowed settings: {', '.join(field_names)}"
    )


def _model_at(loc: Place, root: type[BaseModel]) -> type[BaseModel] | None:
    """Return the model with the fields at `loc`; in a union, the part that its tag names."""
    models: list[type[BaseModel]] = [root]
    for part in loc:
        if isinstance(part, int):
            continue
        tagged = [model for model in models if part in _tags(model)]
        fields = (model.model_fields.get(part) for model in models)
        models = tagged or [
            model for field in fields if field for model in _models_in(field.annotation)
        ]
    return models[0] if models else None


def _tags(model: type[BaseModel]) -> list[object]:
    """Return the tag values that select a model in a union."""
    literals = (f.annotation for f in model.model_fields.values() if f.is_required())
    return [
        tag for literal in literals if get_origin(literal) is Literal for tag in get_args(literal)
    ]


def _models_in(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel | SpecPart):
        return [model_of(annotation)]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]
