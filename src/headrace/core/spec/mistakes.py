"""Mistakes of a document, each with its location, its line, and a suggestion."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from headrace.core.errors import InvalidArgumentError
from headrace.core.names import NAME_PATTERN
from headrace.core.redact import redact, redact_text
from headrace.core.spec.access import INFER_SCOPE_PATTERN, METHOD_PATTERN
from headrace.core.spec.base import model_of
from headrace.core.spec.observe import COLUMN_PATTERN
from headrace.core.spec.part import SpecPart
from headrace.core.spec.upstream import URL_PATTERN
from headrace.core.spec.yaml import Place, SpecMistake, show_place
from headrace.core.text import duration_s

_SHOWN_INPUT: Final = 60


class SpecError(InvalidArgumentError):
    """The spec is invalid; `mistakes` holds all of its mistakes."""

    def __init__(self, mistakes: Sequence[SpecMistake]) -> None:
        self.mistakes = tuple(mistakes)
        count = len(self.mistakes)
        head = f"{count} mistake{'s' if count > 1 else ''} in the spec"
        super().__init__("\n  ".join([f"{head}:", *map(str, self.mistakes)]))


def mistakes_of(
    details: Sequence[ErrorDetails],
    root: type[BaseModel],
    *,
    show: Callable[[object], str] | None = None,
) -> list[SpecMistake]:
    """Return the mistakes of a document that should have been a `root`.

    Args:
        details: The errors that pydantic lists.
        show: Formats a value; None shows it as written.
    """
    details = [detail for detail in details if not _is_echo(detail)]
    return [
        _mistake(detail, root, show or shown)
        for detail in details
        if not _is_other_kind(detail, details)
    ]


_BRANCH: Final = re.compile(r"(literal|tuple|list|constrained-str|str|int|float)\b.*")
"""Part of a location that names no field but a branch of a union, as pydantic writes it."""


def _is_other_kind(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Whether a union rejects a list in its branch for words; the branch for lists says more."""
    above = detail["loc"][:-1]
    return (
        detail["type"] == "literal_error"
        and isinstance(detail["input"], list | tuple)
        and any(other is not detail and other["loc"][: len(above)] == above for other in details)
    )


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
            pattern = str(detail.get("ctx", {}).get("pattern"))
            rule = _FORMS.get(pattern, f"does not match {pattern}")
            message = f"is {show(detail['input'])}, which {rule}"
        case "tuple_type" | "list_type" | "model_type" | "dict_type":
            kind = "list" if detail["type"] in {"tuple_type", "list_type"} else "mapping"
            message = f"should be a {kind}, got {show(detail['input'])}"
        case "union_tag_invalid":
            expected_tags = detail.get("ctx", {}).get("expected_tags")
            tag = detail.get("ctx", {}).get("discriminator", "'kind'").strip("'")
            loc = (*loc, tag)
            value = detail["input"].get(tag)
            message = f"is {show(value)}; {_allowed(value, str(expected_tags))}"
        case "literal_error" if " or " in str(detail.get("ctx", {}).get("expected")):
            expected = str(detail.get("ctx", {}).get("expected")).replace(" or ", ", ")
            message = f"is {show(detail['input'])}; {_allowed(detail['input'], expected)}"
        case "value_error" | "json_invalid":
            message = detail["msg"].removeprefix("Value error, ")
        case "float_type" | "float_parsing" if (seconds := _seconds(detail)) is not None:
            message = f"is in seconds: write {seconds:g} instead of {show(detail['input'])}"
        case "union_tag_not_found":
            message = f"needs {detail.get('ctx', {}).get('discriminator')}, which selects its kind"
        case _:
            text = detail["msg"].removeprefix("Input ")
            message = f"{text}, got {show(detail['input'])}"
    fields = tuple(part for part in loc if isinstance(part, int) or not _BRANCH.fullmatch(part))
    return SpecMistake(place=show_place(fields), message=message)


_FORMS: Final = {
    NAME_PATTERN: "must have 1 to 128 letters, digits, '_', '-' or '.', and start with a letter or "
    "digit",
    rf"^$|{NAME_PATTERN}": "must be empty, or have 1 to 128 letters, digits, '_', '-' or '.', and "
    "start with a letter or digit",
    INFER_SCOPE_PATTERN: "must be infer:ENDPOINT, infer:ENDPOINT:VERSION, or infer:* for all",
    METHOD_PATTERN: "must be key, jwt, jwt:PROVIDER or certificate",
    COLUMN_PATTERN: "must be input.NAME, output.NAME or caller",
    URL_PATTERN: "must be http://HOST:PORT, https://..., grpc://... or grpcs://...",
}
"""Rule of a pattern, in words."""


def _allowed(value: object, expected: str) -> str:
    """Return the allowed values, or the one that is probably meant."""
    close = difflib.get_close_matches(str(value), re.findall(r"'([^']*)'", expected), n=1)
    meant = f"did you mean '{close[0]}'? " if close else ""
    return f"{meant}allowed values: {expected}"


def _seconds(detail: ErrorDetails) -> float | None:
    """Return the seconds of a duration such as `150ms` in a field of seconds."""
    is_time = str(detail["loc"][-1]).endswith("_s")
    return duration_s(detail["input"]) if is_time and isinstance(detail["input"], str) else None


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
        if field_names
        else ""
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
