"""Sections of the management API, from its OpenAPI document."""

import json
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, cast

from headrace.control.api.app import management_app
from headrace.core.spec.base import texts_of
from headrace.registry import Registry
from scripts.reference.schema import default_of, meaning_of, name_of, refs_in, type_of
from scripts.reference.tables import cell

if TYPE_CHECKING:
    from headrace.control.auth.access import AccessControl
    from headrace.control.plane.control_plane import ControlPlane

_GROUPS: Final = {
    "/api/v1/endpoints": "Endpoints and rollouts",
    "/api/v1/rollouts": "Endpoints and rollouts",
    "/api/v1/events": "Events and rewards",
    "/api/v1/watch": "Events and rewards",
    "/api/v1/feedback": "Events and rewards",
    "/api/v1/models": "Models",
    "/api/v1/gc": "Models",
    "/v2": "Triton's routes",
    "/api/v1/keys": "Access",
    "/api/v1/users": "Access",
    "/api/v1/tokens": "Access",
    "/api/v1/trail": "Access",
    "/api/v1/whoami": "Access",
    "/auth": "Access",
}
_OTHERS: Final = "The whole system"
_NOT_OURS: Final = frozenset({"HTTPValidationError", "ValidationError"})
_SHOWN_LINES: Final = 72


class _NoPlane:
    """As much of a control plane as describing its routes needs."""

    def __init__(self) -> None:
        self.home = self
        self.root = Path("nowhere")
        self.registry = Registry(self.root)
        self.desired_state = SimpleNamespace(allow_code=False, work=None)
        self.context = self.telemetry = None
        self.reconciling = SimpleNamespace(keys=None)
        self.workloads = SimpleNamespace(jobs=None, streams=None)


def openapi() -> Mapping[str, Any]:
    """The API's description, as `GET /api/v1/openapi.json` answers it."""
    access = cast("AccessControl", SimpleNamespace(people=None, login=None))
    return management_app(cast("ControlPlane", _NoPlane()), access).openapi()


def management_sections() -> str:
    """Every route by group, then every object in their bodies."""
    document = openapi()
    groups: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {_OTHERS: []}
    for path, operations in document["paths"].items():
        group = next((g for start, g in _GROUPS.items() if path.startswith(start)), _OTHERS)
        for method, operation in operations.items():
            groups.setdefault(group, []).append((method.upper(), path, operation))
    parts = []
    for group, routes in groups.items():
        parts.append(f"## {group}\n")
        examples: set[str] = set()
        parts += [_operation(*route, examples) for route in routes]
    return "\n".join([*parts, *_objects(document)])


def _operation(method: str, path: str, operation: Mapping[str, Any], examples: set[str]) -> str:
    """One route; an example is shown only if `examples`, those of the group, lacks it."""
    parts = [f"### `{method} {path}`\n", f"{operation['summary']}.\n"]
    if role := operation.get("x-headrace-role"):
        parts.append(f"Needs the role: {role}.\n")
    if text := operation.get("description"):
        parts.append(f"{textwrap.dedent(text).strip()}\n")
    rows = [_parameter(part) for part in operation.get("parameters", ()) if part["in"] != "path"]
    if rows:
        head = "| parameter | in | type | default | meaning |\n|---|---|---|---|---|"
        parts.append("\n".join([head, *rows]) + "\n")
    parts += _body(operation.get("requestBody"))
    for status, response in operation["responses"].items():
        if not status.startswith("2"):
            continue  # redirects and problem documents are described once per page
        answer, example = _answer(status, response)
        parts.append(answer)
        if example not in examples:
            parts.append(example)
        examples.add(example)
    return "\n".join(filter(None, parts))


def _parameter(parameter: Mapping[str, Any]) -> str:
    field = parameter["schema"]
    default = "required" if parameter.get("required") else default_of({"default": None, **field})
    meaning = cell(parameter.get("description") or meaning_of(field))
    kind = type_of(field).removesuffix(" or null")
    return f"| `{parameter['name']}` | {parameter['in']} | {kind} | {default} | {meaning} |"


def _body(body: Mapping[str, Any] | None) -> Iterator[str]:
    if body is None:
        return
    optional = "" if body.get("required") else ", optional"
    for media_type, content in body["content"].items():
        schema = content.get("schema", {})
        kind = f": {type_of(schema)}" if list(refs_in(schema)) else ""
        description = f" {body['description']}" if "description" in body else ""
        yield f"Body: `{media_type}`{optional}{kind}.{description}\n"
        named = content.get("examples", {})
        examples = [example["value"] for example in named.values()] or schema.get("examples", [])
        yield from (_json(example) for example in examples if example != {})


def _answer(status: str, response: Mapping[str, Any]) -> tuple[str, str]:
    """The answer in words, and its example if no object's section has one."""
    text, shown = f"Answer: {status}", ""
    for media_type, body in response.get("content", {}).items():
        schema, example = body.get("schema", {}), body.get("example")
        if not schema and example is None:
            continue  # not described
        text += f", `{media_type}`"
        if list(refs_in(schema)):
            text += f", {type_of(schema)}"
        elif media_type == "application/json" and example is not None:
            shown = _json(example)
        elif example is not None:
            shown = f"```http\n{example.strip()}\n```\n"
    return f"{text}.\n", shown


def _objects(document: Mapping[str, Any]) -> Iterator[str]:
    examples = _examples_by_kind(document)
    texts = {
        kind.__name__: texts_of(kind)
        for name, module in list(sys.modules.items())
        if name.startswith("headrace.")
        for kind in vars(module).values()
        if isinstance(kind, type) and kind.__module__ == name
    }
    yield "## Objects\n"
    for name, schema in sorted(document["components"]["schemas"].items()):
        if name in _NOT_OURS:
            continue
        yield f"### {name}\n"
        if told := schema.get("description"):
            yield f"{' '.join(told.split())}\n"
        if "enum" in schema:
            yield f"{type_of(schema)}.\n"
            continue
        yield "\n".join(_fields(schema, texts.get(name, {}))) + "\n"
        # A longer one holds examples that stand at other objects.
        if name in examples and len(text := _json(examples[name]).splitlines()) <= _SHOWN_LINES:
            yield "\n".join(text) + "\n"


def _fields(schema: Mapping[str, Any], texts: Mapping[str, str]) -> Iterator[str]:
    fields: Mapping[str, Any] = schema.get("properties", {})
    required = schema.get("required", ())
    meanings = {
        name: meaning_of(field) or cell(texts.get(name, "")) for name, field in fields.items()
    }
    has_meanings = any(meanings.values())
    yield "| field | type | default |" + (" meaning |" if has_meanings else "")
    yield "|---|---|---|" + ("---|" if has_meanings else "")
    for name, field in fields.items():
        default = "" if name in required else default_of(field)
        meaning = f" {meanings[name]} |" if has_meanings else ""
        yield f"| `{name}` | {type_of(field)} | {default} |{meaning}"


def _examples_by_kind(document: Mapping[str, Any]) -> dict[str, Any]:
    """The first example of each kind that a route answers."""
    found: dict[str, Any] = {}
    for operations in document["paths"].values():
        for operation in operations.values():
            for answer in operation["responses"].values():
                for body in answer.get("content", {}).values():
                    ref = body.get("schema", {}).get("$ref")
                    if ref and "example" in body:
                        found.setdefault(name_of(ref), body["example"])
    return found


def _json(example: object) -> str:
    return f"```json\n{json.dumps(example, indent=2)}\n```\n"
