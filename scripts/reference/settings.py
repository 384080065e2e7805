"""Messages between processes, from their types."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from typing import get_type_hints

import msgspec

from headrace.core.spec.base import texts_of
from scripts.reference.text import cell


def settings_section(kind: type[msgspec.Struct]) -> str:
    """A message: what it is, and its fields with types and defaults."""
    texts = texts_of(kind)
    head = "| field | type | default |\n|---|---|---|"
    if texts:
        head = "| field | type | default | meaning |\n|---|---|---|---|"
    rows = "\n".join(_rows(kind, texts))
    return f"## {kind.__name__}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n{head}\n{rows}\n"


def _rows(kind: type[msgspec.Struct], texts: Mapping[str, str]) -> Iterator[str]:
    types = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        name = cell(_type_name(types[field.name]))
        row = f"| `{field.name}` | `{name}` | {_default(field)} |"
        yield f"{row} {cell(texts.get(field.name, ''))} |" if texts else row


def _default(field: msgspec.structs.FieldInfo) -> str:
    default: object = field.default
    if field.default_factory is not msgspec.NODEFAULT:
        default = field.default_factory()
    if default is msgspec.NODEFAULT:
        return "required"
    if default is msgspec.UNSET:
        return "left out"
    if isinstance(default, msgspec.Struct):
        return "as below"
    return f"`{json.dumps(default)}`"


def _type_name(kind: object) -> str:
    is_plain = isinstance(kind, type) and not str(kind).startswith(("dict[", "list["))
    name = kind.__name__ if is_plain and isinstance(kind, type) else str(kind)
    return re.sub(r"headrace(\.\w+)+\.", "", name)
