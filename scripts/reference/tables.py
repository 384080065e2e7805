"""Markdown tables of enumerations, error classes and messages."""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping
from enum import StrEnum
from typing import Final, get_type_hints

import msgspec

from headrace import core
from headrace.core import Code, HeadraceError
from headrace.core.spec.base import texts_of
from headrace.protocol import GRPC_STATUS, HTTP_STATUS

WHO_ACTS: Final[Mapping[Code, str]] = {
    Code.INVALID_ARGUMENT: "the caller changes the request",
    Code.NOT_FOUND: "the caller names something that exists",
    Code.ALREADY_EXISTS: "the caller takes another name",
    Code.UNAUTHENTICATED: "the caller sends a valid key, token or certificate",
    Code.PERMISSION_DENIED: "the caller asks for the permission, or uses the port that allows it",
    Code.UNIMPLEMENTED: "the caller uses another feature",
    Code.RESOURCE_EXHAUSTED: "the caller waits, or sends less",
    Code.UNAVAILABLE: "the caller waits",
    Code.DEADLINE_EXCEEDED: "the caller waits longer, or the operator adds replicas",
    Code.CANCELLED: "no action: the caller disconnected",
    Code.FAILED_PRECONDITION: "the operator changes the system's state",
    Code.ABORTED: "the author of the change reads the object again and retries",
    Code.DATA_LOSS: "the operator pushes the model again",
    Code.INTERNAL: "the operator looks up the request id in the log",
}


def cell(text: str) -> str:
    """`text` inside a table cell: one line, escaped bars."""
    return " ".join(text.split()).replace("|", "\\|")


def meanings(kind: type[StrEnum]) -> Mapping[str, str]:
    """The docstring of each member by value; empty where there is none."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    texts: dict[str, str] = {}
    name = ""
    for statement in definition.body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)]):
                texts[kind[name].value] = ""
            case ast.Expr(value=ast.Constant(value=str(text))) if name:
                texts[kind[name].value] = cell(text)
    return texts


def word_table(kind: type[StrEnum], title: str) -> str:
    """The members of an enumeration and their meanings."""
    rows = [f"| `{word}` | {meaning} |" for word, meaning in meanings(kind).items()]
    return "\n".join([f"| {title} | meaning |", "|---|---|", *rows])


def error_table() -> str:
    """Every error class: its code, its statuses, its meaning, who can act."""
    members = [getattr(core, name) for name in core.__all__]
    kinds = [kind for kind in members if isinstance(kind, type) and issubclass(kind, HeadraceError)]
    kinds.remove(HeadraceError)
    rows = []
    for kind in sorted(kinds, key=lambda kind: list(Code).index(kind.code)):
        status = 413 if kind is core.PayloadTooLargeError else HTTP_STATUS[kind.code]
        meaning = cell(inspect.cleandoc(kind.__doc__ or ""))
        rows.append(
            f"| `{kind.__name__}` | {kind.code} | {status} | {GRPC_STATUS[kind.code]} "
            f"| {meaning} | {WHO_ACTS[kind.code]} |"
        )
    head = ["| class | code | HTTP | gRPC | meaning | who acts |", "|---|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


def code_table() -> str:
    """Every code with its statuses."""
    rows = [f"| {code} | {HTTP_STATUS[code]} | {GRPC_STATUS[code]} |" for code in Code]
    return "\n".join(["| code | HTTP | gRPC |", "|---|---|---|", *rows])


def settings_section(kind: type[msgspec.Struct]) -> str:
    """A message type: its docstring and its fields with types and defaults."""
    texts = texts_of(kind)
    head = "| field | type | default |\n|---|---|---|"
    if texts:
        head = "| field | type | default | meaning |\n|---|---|---|---|"
    rows = "\n".join(_rows(kind, texts))
    return f"## {kind.__name__}\n\n{inspect.cleandoc(kind.__doc__ or '')}\n\n{head}\n{rows}\n"


def _rows(kind: type[msgspec.Struct], texts: Mapping[str, str]) -> Iterator[str]:
    types = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        type_ = types[field.name]
        is_plain = isinstance(type_, type) and not str(type_).startswith(("dict[", "list["))
        name = type_.__name__ if is_plain and isinstance(type_, type) else str(type_)
        name = cell(re.sub(r"headrace(\.\w+)+\.", "", name))
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
    return "as below" if isinstance(default, msgspec.Struct) else f"`{json.dumps(default)}`"
