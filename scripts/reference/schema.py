"""How is a part of a JSON Schema told to people? Types with bounds, defaults, meanings."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from scripts.reference.text import cell

_CHOICES: Final = ("anyOf", "oneOf")


def refs_in(part: Any) -> Iterator[str]:  # noqa: ANN401  # any JSON
    """Names of the kinds that `part` refers to, in order."""
    if isinstance(part, Mapping):
        if isinstance(ref := part.get("$ref"), str):
            yield name_of(ref)
        for key, value in part.items():
            if key not in {"default", "discriminator", "example", "examples"}:
                yield from refs_in(value)
    elif isinstance(part, list):
        for value in part:
            yield from refs_in(value)


def name_of(ref: str) -> str:
    """`#/$defs/SloSpec` is `SloSpec`."""
    return ref.rsplit("/", 1)[1]


def type_of(field: Mapping[str, Any]) -> str:
    """A type and its bounds, for people; kinds of objects are links to their sections."""
    match field:
        case {"$ref": ref}:
            text = f"[{name_of(ref)}](#{name_of(ref).lower()})"
        case {"anyOf": choices} | {"oneOf": choices}:
            text = " or ".join(dict.fromkeys(map(type_of, choices)))
        case {"const": value}:
            text = f"`{value}`"
        case {"enum": words}:
            text = " or ".join(f"`{word}`" for word in words)
        case {"type": "array"}:
            items = field.get("prefixItems", [field.get("items", {})])
            text = f"list of {', '.join(map(type_of, items))}"
        case {"type": "object", "additionalProperties": dict(values)} if values:
            text = f"mapping to {type_of(values)}"
        case {"type": "object"}:
            text = "mapping"
        case {"type": kind}:
            text = f"{kind}{_bounds(field)}"
        case _:
            text = "any JSON"
    return text


def default_of(field: Mapping[str, Any]) -> str:
    """A default as JSON; of objects with a section of their own, that section says it."""
    if "default" not in field:
        is_nullable = {"type": "null"} in field.get("anyOf", ())
        return "`null`" if is_nullable else "empty"
    default = field["default"]
    return "as below" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def meaning_of(field: Mapping[str, Any]) -> str:
    """What the field's own description says, else that of the first choice that has one."""
    choices = [one for key in _CHOICES for one in field.get(key, ())]
    told = [field.get("description", ""), *(choice.get("description", "") for choice in choices)]
    return cell(next(filter(None, told), ""))


def _bounds(field: Mapping[str, Any]) -> str:
    if "pattern" in field:
        return f", `{cell(field['pattern'])}`"
    low, high = _edge(field, "inimum", "from", "above"), _edge(field, "aximum", "to", "below")
    if high.startswith("to"):
        return f", {low.removeprefix('from ')} {high}" if low else f", up {high}"
    return "".join(f", {edge}" for edge in (low, high) if edge)


def _edge(field: Mapping[str, Any], name: str, closed: str, opened: str) -> str:
    if (value := field.get(f"m{name}")) is not None:
        return f"{closed} {_number(value)}"
    if (value := field.get(f"exclusiveM{name}")) is not None:
        return f"{opened} {_number(value)}"
    return ""


def _number(value: float) -> str:
    return f"{int(value):,}" if float(value).is_integer() else f"{value:g}"
