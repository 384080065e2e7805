"""Reader of YAML documents that keeps the line of each value.

The result is plain data: mappings with text keys, lists, text, numbers, booleans, null. Tags,
duplicate keys, unbounded growth through aliases, and huge files are mistakes.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Final

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES: Final = 1 << 20
MAX_VALUES: Final = 50_000
MAX_DEPTH: Final = 32
_TAG: Final = "tag:yaml.org,2002:"
_PLAIN_TAGS: Final = frozenset(
    {"null", "bool", "int", "float", "str", "map", "seq", "merge", "timestamp", "value"}
)

Place = tuple[str | int, ...]
"""Location of a value: keys and positions from the root."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecMistake:
    """One mistake: `place` as in `endpoints[0].batching`, `line` counts from 1."""

    place: str
    message: str
    line: int | None = None

    def __str__(self) -> str:
        location = self.place or "the document"
        return f"{location}{'' if self.line is None else f' (line {self.line})'}: {self.message}"


@dataclass(slots=True, kw_only=True)
class YamlDocument:
    """Value of a document, the line of each location, and the syntax mistakes."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    mistakes: list[SpecMistake] = field(default_factory=list)


def show_place(path: Place) -> str:
    """Return `("endpoints", 0, "name")` in its written form: `endpoints[0].name`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text


def read_yaml(text: str) -> YamlDocument:
    """Return the document in `text`; never raises for any input."""
    document = YamlDocument()
    if len(text) > MAX_BYTES:
        message = f"is longer than {MAX_BYTES} bytes"
        document.mistakes.append(SpecMistake(place="", message=message))
        return document
    yaml = YAML(typ="safe", pure=True)
    yaml.composer.warn_double_anchors = False  # the warning quotes the document
    try:
        node = yaml.compose(text)
    except RecursionError:
        document.mistakes.append(SpecMistake(place="", message="is nested too deeply"))
    except MarkedYAMLError as error:
        document.mistakes.append(_syntax_mistake(error, text))
    except YAMLError as error:
        message = f"is not YAML: {str(error).splitlines()[0]}"
        document.mistakes.append(SpecMistake(place="", message=message))
    else:
        _Reader(document).read_top(node)
    return document


def _syntax_mistake(error: MarkedYAMLError, text: str) -> SpecMistake:
    line = None if error.problem_mark is None else error.problem_mark.line
    lines = text.splitlines()
    message = f"is not YAML: {error.problem}"
    if line is not None and line < len(lines) and re.match(r" *\t", lines[line]):
        message = "is not YAML: a tab indents this line; use spaces"
    return SpecMistake(place="", message=message, line=None if line is None else line + 1)


class _TooMuchError(Exception):
    """The document is larger than any hand-written one."""


class _Reader:
    """Converter of a tree of nodes to plain data; a node shared by aliases is read once per use."""

    def __init__(self, document: YamlDocument) -> None:
        self._document = document
        self._values = 0
        self._merging: set[int] = set()

    def read_top(self, node: Node | None) -> None:
        try:
            self._document.value = None if node is None else self._read(node, ())
        except _TooMuchError as error:
            self._document.value = None
            self._wrong((), str(error), node)

    def _wrong(self, path: Place, message: str, node: Node | None) -> None:
        line = None if node is None else node.start_mark.line + 1
        mistake = SpecMistake(place=show_place(path), message=message, line=line)
        self._document.mistakes.append(mistake)

    def _read(self, node: Node, path: Place) -> Any:  # noqa: ANN401  # a codec: any plain value
        self._count_value()
        if len(path) > MAX_DEPTH:
            raise _TooMuchError(f"is nested deeper than {MAX_DEPTH} levels")
        self._document.lines.setdefault(path, node.start_mark.line + 1)
        kind = str(node.tag).removeprefix(_TAG)
        if kind not in _PLAIN_TAGS:
            self._wrong(
                path, f"has the tag {str(node.tag)[:80]!r}; only plain values are allowed", node
            )
            return None
        if isinstance(node, MappingNode):
            return self._read_mapping(node, path)
        if isinstance(node, SequenceNode):
            return [self._read(item, (*path, i)) for i, item in enumerate(node.value)]
        assert isinstance(node, ScalarNode)
        return self._read_scalar(node, kind, path)

    def _read_mapping(self, node: MappingNode, path: Place) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            key = key_node.value
            if not isinstance(key_node, ScalarNode) or not isinstance(key, str):
                self._wrong(path, "has a key that is not text", key_node)
            elif str(key_node.tag) == f"{_TAG}merge":
                merged = {**self._read_merged(value_node, path), **merged}
            elif key in own:
                self._wrong((*path, key), "appears twice", key_node)
            else:
                # A mistake in a value is shown on the line of its key.
                self._document.lines[*path, key] = key_node.start_mark.line + 1
                own[key] = self._read(value_node, (*path, key))
        return {**merged, **own}

    def _read_merged(self, node: Node, path: Place) -> dict[str, Any]:
        """Return the content of `<<`: a mapping, or a list of mappings of which the first wins."""
        nodes = node.value if isinstance(node, SequenceNode) else [node]
        merged: dict[str, Any] = {}
        for item in nodes:
            self._count_value()
            if id(item) in self._merging:
                raise _TooMuchError("has a mapping that merges itself with '<<'")
            if not isinstance(item, MappingNode):
                self._wrong(path, "merges a value with '<<' that is not a mapping", item)
                continue
            self._merging.add(id(item))
            merged = {**self._read_mapping(item, path), **merged}
            self._merging.discard(id(item))
        return merged

    def _count_value(self) -> None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _TooMuchError(f"has more than {MAX_VALUES} values, aliases included")

    def _read_scalar(self, node: ScalarNode, kind: str, path: Place) -> str | float | bool | None:
        text = str(node.value)
        match kind:
            case "null":
                return None
            case "bool":
                return text.lower() == "true"
            case "int" | "float":
                return self._read_number(node, text, kind, path)
            case _:
                return text

    def _read_number(
        self, node: ScalarNode, text: str, kind: str, path: Place
    ) -> str | float | None:
        plain = text.replace("_", "").lower()
        try:
            if kind == "float":
                return float(plain.replace(".inf", "inf").replace(".nan", "nan"))
            return int(plain, 0) if re.match(r"[-+]?0[xob]", plain) else int(plain, 10)
        except ValueError:
            self._wrong(path, f"{text[:40]!r} is not a number", node)
            return None
