"""Markdown for a JSON Schema: types with bounds, defaults, meanings; sections of the spec file."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

from scripts.reference.tables import cell

_CHOICES: Final = ("anyOf", "oneOf")
_FILE: Final = "The file"


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
    """A default as JSON; `as below` for objects with their own section."""
    if "default" not in field:
        is_nullable = {"type": "null"} in field.get("anyOf", ())
        return "`null`" if is_nullable else "empty"
    default = field["default"]
    return "as below" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def meaning_of(field: Mapping[str, Any]) -> str:
    """The field's description, else that of its first choice with a description."""
    choices = [choice for key in _CHOICES for choice in field.get(key, ())]
    texts = [part.get("description", "") for part in (field, *choices)]
    return cell(next(filter(None, texts), ""))


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


def spec_sections(schema: Mapping[str, Any]) -> str:
    """A table of settings for the file and for each kind of object in it, outer ones first."""
    kinds = schema["$defs"]
    parts = [_section(_FILE, schema), *(_section(name, kinds[name]) for name in _order(schema))]
    return "\n".join(parts)


def _order(schema: Mapping[str, Any]) -> list[str]:
    """Every kind of object, each after the one that names it first."""
    names: list[str] = []
    visited: set[str] = set()

    def visit(part: Mapping[str, Any]) -> None:
        for name in refs_in(part.get("properties", {})):
            if name not in visited:
                visited.add(name)
                names.append(name)
                visit(schema["$defs"][name])

    visit({"properties": {"endpoints": schema["properties"]["endpoints"]}})
    visit(schema)
    return names


def _section(title: str, schema: Mapping[str, Any]) -> str:
    head = "| setting | type | default | meaning |\n|---|---|---|---|"
    rows = "\n".join(_rows(schema))
    return f"## {title}\n\n{schema['description']}\n\n{head}\n{rows}\n"


def _rows(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    # What tells one kind from another comes first.
    fields = sorted(schema["properties"].items(), key=lambda item: "const" not in item[1])
    for name, field in fields:
        default = "required" if name in required else default_of(field)
        yield f"| `{name}` | {type_of(field)} | {default} | {meaning_of(field)} |"
