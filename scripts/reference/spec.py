"""What may stand in `headrace.yaml`, from its JSON Schema."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from scripts.reference.schema import default_of, meaning_of, refs_in, type_of

_FILE: Final = "The file"


def spec_sections(schema: Mapping[str, Any]) -> str:
    """A table of settings for the file and for each kind of object in it, outer ones first."""
    kinds = schema["$defs"]
    parts = [_section(_FILE, schema), *(_section(name, kinds[name]) for name in _order(schema))]
    return "\n".join(parts)


def _order(schema: Mapping[str, Any]) -> list[str]:
    """Every kind of object, each after the one that names it first."""
    found: list[str] = []
    seen: set[str] = set()

    def visit(part: Mapping[str, Any]) -> None:
        for name in refs_in(part.get("properties", {})):
            if name not in seen:
                seen.add(name)
                found.append(name)
                visit(schema["$defs"][name])

    visit({"properties": {"endpoints": schema["properties"]["endpoints"]}})
    visit(schema)
    return found


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
