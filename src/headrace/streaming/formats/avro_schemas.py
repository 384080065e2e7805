"""Avro schemas prepared for reading: complete, without logical types, and safe for any bytes.

A schema is refused if a few bytes could be read as unbounded values: an array whose items take no
bytes, or a record that contains itself. In the latter case fastavro recurses in C without a limit:
a deep value ends the process.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import fastavro
import msgspec
from fastavro.schema import SchemaParseException

from headrace.core import InvalidArgumentError

Node = Any
"""A schema or a part of one, as decoded JSON."""

_PRIMITIVES: Final = frozenset(
    {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}
)
_MAX_DEPTH: Final = 64
_MAX_FIXED: Final = 1 << 24
_MAX_NODES: Final = 10_000
_MAX_SCALE: Final = 64
RECORD_KINDS: Final = frozenset({"record", "error"})


@dataclass(frozen=True, slots=True, kw_only=True)
class AvroSchema:
    """A schema for reading or writing."""

    root: Node
    """A record with everything that it refers to, in fastavro's form; decimals have a `scale`, not
    a logical type."""
    named: Mapping[str, Node]
    """The definitions in it, by full name."""
    text: str
    """The original text."""

    def resolved(self, node: Node) -> Node:
        """Return the definition of a name, or the node itself."""
        return self.named.get(node, node) if isinstance(node, str) else node

    def find(self, path: str) -> Node:
        """Return the type of the field at a dotted path, which may lead through nullable records.

        Raises:
            InvalidArgumentError: The field does not exist.
        """
        node = self.root
        for part in path.split("."):
            record = self._only_record(node)
            fields = [] if record is None else record["fields"]
            match = next((candidate for candidate in fields if candidate["name"] == part), None)
            if match is None:
                names = ", ".join(other["name"] for other in fields[:20])
                msg = f"the record's schema has no field '{path}'; where '{part}' would be there is"
                raise InvalidArgumentError(f"{msg}: {names or 'no record'}")
            node = match["type"]
        return self.resolved(node)

    def _only_record(self, node: Node) -> Node | None:
        node = self.resolved(node)
        if isinstance(node, list):
            rest = [branch for branch in map(self.resolved, node) if branch != "null"]
            node = rest[0] if len(rest) == 1 else None
        return node if isinstance(node, dict) and node["type"] in RECORD_KINDS else None


def read_schema(text: str, others: Mapping[str, str] | None = None) -> AvroSchema:
    """Return the schema in `text`.

    Args:
        others: The schemas that it refers to, by full name.

    Raises:
        InvalidArgumentError: The text is not a schema of a record, or the schema is not safe.
    """
    walk = _Walk({name: _json(other) for name, other in (others or {}).items()})
    root, _ = walk.visit(_json(text), "", 0)
    if not isinstance(root, dict) or root["type"] not in RECORD_KINDS:
        msg = "the Avro schema is no record, so it has no fields"
        raise InvalidArgumentError(msg)
    try:
        parsed = fastavro.parse_schema(root)
    except (SchemaParseException, ValueError, TypeError, KeyError) as error:
        raise _bad(f"{type(error).__name__}: {error}") from None
    return AvroSchema(root=parsed, named=walk.named, text=text)


def _json(text: str) -> Node:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise _bad(error) from None


def _bad(reason: object) -> InvalidArgumentError:
    return InvalidArgumentError(f"the Avro schema cannot be used: {str(reason)[:300]}")


@dataclass(slots=True)
class _Walk:
    """Visits a schema once; each visit returns whether every value takes bytes."""

    others: Mapping[str, Node]
    named: dict[str, Node] = field(default_factory=dict)
    takes_bytes: dict[str, bool] = field(default_factory=dict)
    in_progress: set[str] = field(default_factory=set)
    nodes: int = 0

    def visit(self, node: Node, namespace: str, depth: int) -> tuple[Node, bool]:
        self.nodes += 1
        if depth > _MAX_DEPTH or self.nodes > _MAX_NODES:
            raise _bad(f"it has more than {_MAX_DEPTH} levels or {_MAX_NODES} parts")
        if isinstance(node, str):
            return self._name(node, namespace, depth)
        if isinstance(node, list):
            parts = [self.visit(branch, namespace, depth + 1) for branch in node]
            if not parts:
                raise _bad("it has a union of nothing")
            return [part for part, _ in parts], True
        if not isinstance(node, dict) or "type" not in node:
            raise _bad(f"{str(node)[:80]} is no type")
        return self._definition(node, namespace, depth)

    def _name(self, name: str, namespace: str, depth: int) -> tuple[Node, bool]:
        if name in _PRIMITIVES:
            return name, name != "null"
        full = _full(name, namespace)
        for candidate in (full, name):
            if candidate in self.in_progress:
                raise _bad(f"'{candidate}' holds itself, so its values could be of any depth")
            if candidate in self.named:
                return candidate, self.takes_bytes[candidate]
            if candidate in self.others:
                return self.visit(self.others[candidate], "", depth + 1)
        raise _bad(f"it uses '{full}', which nothing defines")

    def _definition(self, node: Node, namespace: str, depth: int) -> tuple[Node, bool]:
        kind = node["type"]
        if kind == "array":
            items, takes_bytes = self.visit(node.get("items"), namespace, depth + 1)
            if not takes_bytes:
                raise _bad("it has an array whose items take no bytes, so it could have any length")
            return {"type": "array", "items": items}, True
        if kind == "map":
            values, _ = self.visit(node.get("values"), namespace, depth + 1)
            return {"type": "map", "values": values}, True
        if kind in ("enum", "fixed") or (isinstance(kind, str) and kind in RECORD_KINDS):
            return self._named(node, kind, namespace, depth)
        inner, takes_bytes = self.visit(kind, namespace, depth + 1)
        if isinstance(inner, str) and inner == "bytes":
            return {"type": "bytes", **_scale(node)}, takes_bytes
        return inner, takes_bytes

    def _named(self, node: Node, kind: str, namespace: str, depth: int) -> tuple[Node, bool]:
        name = node.get("name")
        if not isinstance(name, str):
            raise _bad(f"it has a {kind} without a name")
        own_namespace = node.get("namespace")
        full = _full(name, own_namespace if isinstance(own_namespace, str) else namespace)
        if full in self.named or full in self.in_progress:
            raise _bad(f"it defines '{full}' twice")
        definition: Node = {"type": kind, "name": full}
        if aliases := node.get("aliases"):
            definition["aliases"] = aliases
        if kind == "enum":
            definition |= {key: node[key] for key in ("symbols", "default") if key in node}
            takes_bytes = True
        elif kind == "fixed":
            size = node.get("size", -1)
            if type(size) is not int or not 0 <= size <= _MAX_FIXED:
                raise _bad(f"'{full}' is fixed, but not of 0 to {_MAX_FIXED} bytes")
            definition |= {"size": size, **_scale(node)}
            takes_bytes = size > 0
        else:
            self.in_progress.add(full)
            definition["fields"], takes_bytes = self._fields(node, full, depth)
            self.in_progress.remove(full)
        self.named[full] = definition
        self.takes_bytes[full] = takes_bytes
        return definition, takes_bytes

    def _fields(self, node: Node, full: str, depth: int) -> tuple[list[Node], bool]:
        fields: list[Node] = []
        names: set[str] = set()
        takes_bytes = False
        declared = node.get("fields")
        if not isinstance(declared, list):
            raise _bad(f"the record '{full}' has no list of fields")
        for item in declared:
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise _bad(f"the record '{full}' has a field without a name")
            if item["name"] in names:
                raise _bad(f"the record '{full}' has two fields '{item['name']}'")
            names.add(item["name"])
            inner, has_bytes = self.visit(item.get("type"), full.rpartition(".")[0], depth + 1)
            extras = {key: item[key] for key in ("default", "aliases") if key in item}
            fields.append({"name": item["name"], "type": inner, **extras})
            takes_bytes = takes_bytes or has_bytes
        return fields, takes_bytes


def _scale(node: Node) -> dict[str, int]:
    """Return the scale of a decimal as an attribute; empty for other types."""
    if node.get("logicalType") != "decimal":
        return {}
    scale = node.get("scale", 0)
    if type(scale) is not int or not 0 <= scale <= _MAX_SCALE:
        raise _bad(f"it has a decimal whose scale is not from 0 to {_MAX_SCALE}")
    return {"scale": scale}


def _full(name: str, namespace: str) -> str:
    return name if "." in name or not namespace else f"{namespace}.{name}"
