"""What may stand in `headrace.yaml`, from its JSON Schema."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from scripts.reference.text import cell

_NAMES = ("EndpointSpec", "VersionSpec", "BatchingSpec", "PaddingSpec", "GatewaySpec")


def spec_sections(schema: Mapping[str, Any]) -> str:
    """A table of settings for the file and for each kind of object in it."""
    parts = [_section("The file", schema)]
    parts += [_section(name, schema["$defs"][name]) for name in _NAMES]
    return "\n".join(parts)


def _section(title: str, schema: Mapping[str, Any]) -> str:
    head = "| setting | type | default | meaning |\n|---|---|---|---|"
    rows = "\n".join(_rows(schema))
    return f"## {title}\n\n{schema['description']}\n\n{head}\n{rows}\n"


def _rows(schema: Mapping[str, Any]) -> Iterator[str]:
    required = schema.get("required", ())
    for name, field in schema["properties"].items():
        default = "required" if name in required else _default(field)
        choices = [choice.get("description", "") for choice in field.get("anyOf", ())]
        meaning = field.get("description") or next(filter(None, choices), "")
        yield f"| `{name}` | {_type(field)} | {default} | {cell(meaning)} |"


def _default(field: Mapping[str, Any]) -> str:
    if "default" not in field:
        return "empty"
    default = field["default"]
    return "as below" if isinstance(default, dict) else f"`{json.dumps(default)}`"


def _type(field: Mapping[str, Any]) -> str:
    """A type and its bounds, for people."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"])
    if "const" in field:
        return f"`{field['const']}`"
    match field["type"]:
        case "array":
            return f"list of {_type(field['items'])}"
        case "object":
            return f"mapping to {_type(field['additionalProperties'])}"
        case kind:
            return f"{kind}{_bounds(field)}"


def _bounds(field: Mapping[str, Any]) -> str:
    if "pattern" in field:
        return f", `{cell(field['pattern'])}`"
    low, high = field.get("minimum", field.get("exclusiveMinimum")), field.get("maximum")
    if low is None or high is None:
        return ""
    above = "above " if "exclusiveMinimum" in field else ""
    return f", {above}{low:g} to {high:,}"
