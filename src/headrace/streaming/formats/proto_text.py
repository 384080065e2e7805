"""The text of a .proto file as a descriptor: what it takes to read messages, without `protoc`.

Names of types stay as they are written, since descriptor pools resolve them. Options, services and
extensions are passed over: they do not change how a message's own fields are read. The language:
https://protobuf.dev/reference/protobuf/proto3-spec/ and proto2's; no groups, no editions.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from google.protobuf import descriptor_pb2 as pb

from headrace.core import InvalidArgumentError

_TOKEN: Final = re.compile(
    r"""\s+|//[^\n]*|/\*.*?\*/"""
    r"""|(?P<word>\.?[A-Za-z_][\w.]*)|(?P<number>[+-]?\.?\d(?:[eE][+-](?=\d)|[\w.])*)"""
    r"""|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')|(?P<sign>[{}()\[\]<>=;,:/+-])""",
    re.DOTALL,
)
_SCALARS: Final = {
    name.removeprefix("TYPE_").lower(): number
    for name, number in pb.FieldDescriptorProto.Type.items()
    if name not in ("TYPE_GROUP", "TYPE_MESSAGE", "TYPE_ENUM")
}
_LABELS: Final = {
    "optional": pb.FieldDescriptorProto.LABEL_OPTIONAL,
    "required": pb.FieldDescriptorProto.LABEL_REQUIRED,
    "repeated": pb.FieldDescriptorProto.LABEL_REPEATED,
}
_CLOSING: Final = {"{": "}", "[": "]", "(": ")", "<": ">"}
_MAX_DEPTH: Final = 32
_MAX_NUMBER: Final = (1 << 29) - 1
_SYNTAXES: Final = frozenset({"proto2", "proto3"})


def parse_proto(text: str, name: str) -> Any:  # noqa: ANN401  # protobuf ships no types
    """The `FileDescriptorProto` of a file.

    Raises:
        InvalidArgumentError: It is not a .proto file, or has groups or editions.
    """
    return _Parser(list(_tokens(text)), pb.FileDescriptorProto(name=name)).file()


def _tokens(text: str) -> Iterator[tuple[str, int]]:
    """Words and signs, each with its line."""
    at, line = 0, 1
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            msg = f"the .proto text cannot be read: line {line}: {text[at : at + 20]!r}"
            raise InvalidArgumentError(msg)
        if match.lastgroup is not None:
            yield match[0], line
        line += match[0].count("\n")
        at = match.end()


@dataclass(slots=True)
class _Parser:
    tokens: list[tuple[str, int]]
    made: Any
    at: int = 0
    optionals: list[tuple[Any, Any]] = field(default_factory=list)

    def file(self) -> Any:  # noqa: ANN401  # as above
        while self.at < len(self.tokens):
            self.statement(self.next())
        for message, one in self.optionals:  # after the real ones of each message
            one.proto3_optional = True
            one.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{one.name}")
        return self.made

    def statement(self, word: str) -> None:
        if word == "message":
            self.message(self.made.message_type.add(), 1)
        elif word == "enum":
            self.enum(self.made.enum_type.add())
        elif word in ("option", "service", "extend"):
            self.skip()
        elif word == "import":
            if self.peek() in ("public", "weak"):
                self.next()
            self.made.dependency.append(self.quoted())
            self.expect(";")
        elif word == "package":
            self.made.package = self.next()
            self.expect(";")
        elif word == "syntax":
            self.expect("=")
            self.made.syntax = self.quoted()
            if self.made.syntax not in _SYNTAXES:
                self.fail(f"the syntax {self.made.syntax!r} is not known")
            self.expect(";")
        elif word != ";":
            self.fail(f"{word!r} is not expected here; editions are not supported")

    def message(self, made: Any, depth: int) -> None:  # noqa: ANN401  # as above
        if depth > _MAX_DEPTH:
            self.fail("messages are nested too deep")
        made.name = self.next()
        self.expect("{")
        while (word := self.next()) != "}":
            if word == "message":
                self.message(made.nested_type.add(), depth + 1)
            elif word == "enum":
                self.enum(made.enum_type.add())
            elif word == "oneof":
                self.oneof(made)
            elif word in ("option", "reserved", "extensions", "extend"):
                self.skip()
            elif word != ";":
                self.field(made, word)

    def oneof(self, message: Any) -> None:  # noqa: ANN401  # as above
        place = len(message.oneof_decl)
        message.oneof_decl.add(name=self.next())
        self.expect("{")
        while (word := self.next()) != "}":
            if word == "option":
                self.skip()
            elif word != ";":
                self.field(message, word).oneof_index = place

    def field(self, message: Any, word: str) -> Any:  # noqa: ANN401  # as above
        label = _LABELS.get(word)
        kind = word if label is None else self.next()
        if kind == "group":
            self.fail("groups are not supported")
        made = message.field.add(label=label or _LABELS["optional"])
        is_map = kind == "map" and self.peek() == "<"
        pair = self.map_types() if is_map else None
        made.name = self.next()
        self.expect("=")
        made.number = self.number()
        if not 1 <= made.number <= _MAX_NUMBER:
            self.fail(f"{made.number} is no field's number")
        if pair is not None:
            self.entry(message, made, pair)
        else:
            _set_type(made, kind)
        self.options(made)
        if word == "optional" and self.made.syntax == "proto3":
            self.optionals.append((message, made))
        return made

    def map_types(self) -> tuple[str, str]:
        self.expect("<")
        key = self.next()
        self.expect(",")
        value = self.next()
        self.expect(">")
        return key, value

    def entry(self, message: Any, made: Any, pair: tuple[str, str]) -> None:  # noqa: ANN401  # as above
        """A map is a list of messages of a type of its own."""
        words = re.split("_+", made.name)
        entry = message.nested_type.add(
            name="".join(w[:1].upper() + w[1:] for w in words) + "Entry"
        )
        entry.options.map_entry = True
        for number, (name, kind) in enumerate(zip(("key", "value"), pair, strict=True), start=1):
            _set_type(entry.field.add(name=name, number=number, label=_LABELS["optional"]), kind)
        made.label = _LABELS["repeated"]
        made.type_name = entry.name

    def options(self, made: Any) -> None:  # noqa: ANN401  # as above
        """Of a field; `default` is the one that changes what is read."""
        word = self.next()
        if word == "[":
            inside = self.inside("]")
            for at, one in enumerate(inside[:-2]):
                starts = at == 0 or inside[at - 1] == ","
                if starts and one == "default" and inside[at + 1] == "=":
                    made.default_value = _default(inside[at + 2 :], made)
            word = self.next()
        if word != ";":
            self.fail(f"{word!r} is not expected after a field")

    def enum(self, made: Any) -> None:  # noqa: ANN401  # as above
        made.name = self.next()
        self.expect("{")
        while (word := self.next()) != "}":
            if word == "option":
                if self.peek() == "allow_alias":
                    made.options.allow_alias = True
                self.skip()
            elif word == "reserved":
                self.skip()
            elif word != ";":
                self.expect("=")
                made.value.add(name=word, number=self.number())
                self.skip()

    def skip(self) -> None:
        """To the end of a statement: a semicolon, or a block outside of brackets."""
        while (word := self.next()) != ";":
            if word in _CLOSING:
                self.inside(_CLOSING[word])
                if word == "{" and self.peek() != ";":
                    return

    def inside(self, end: str) -> list[str]:
        """What is before the bracket that closes."""
        found: list[str] = []
        open_ones = [end]
        while open_ones:
            word = self.next()
            if word == open_ones[-1]:
                open_ones.pop()
            elif word in _CLOSING:
                open_ones.append(_CLOSING[word])
            found.append(word)
        return found[:-1]

    def next(self) -> str:
        if self.at >= len(self.tokens):
            self.fail("it ends too early")
        self.at += 1
        return self.tokens[self.at - 1][0]

    def peek(self) -> str:
        return self.tokens[self.at][0] if self.at < len(self.tokens) else ""

    def expect(self, wanted: str) -> None:
        if (word := self.next()) != wanted:
            self.fail(f"{wanted!r} is expected, not {word!r}")

    def quoted(self) -> str:
        word = self.next()
        if word[:1] not in "\"'":
            self.fail(f"a text in quotes is expected, not {word!r}")
        return word[1:-1]

    def number(self) -> int:
        word = self.next()
        sign = -1 if word == "-" else 1
        word = self.next() if word in "+-" else word
        try:
            value = sign * (int(word, 8) if re.fullmatch("0[0-7]+", word) else int(word, 0))
        except ValueError:
            self.fail(f"a number is expected, not {word!r}")
        if not -(1 << 31) <= value < 1 << 31:
            self.fail(f"{word[:20]} is too large")
        return value

    def fail(self, why: str) -> NoReturn:
        line = self.tokens[max(self.at - 1, 0)][1] if self.tokens else 1
        msg = f"the .proto text cannot be read: line {line}: {why[:200]}"
        raise InvalidArgumentError(msg)


def _set_type(made: Any, kind: str) -> None:  # noqa: ANN401  # as above
    if kind in _SCALARS:
        made.type = _SCALARS[kind]
    else:
        made.type_name = kind


def _default(words: list[str], made: Any) -> str:  # noqa: ANN401  # as above
    """The text that descriptors have for a default."""
    word = words[0] + words[1] if words[0] in ("-", "+") and len(words) > 1 else words[0]
    if word[:1] not in "\"'":
        is_hex = re.fullmatch("[+-]?0[xX][0-9a-fA-F]{1,16}", word)
        return str(int(word, 16)) if is_hex else word.removeprefix("+")
    raw = word[1:-1]
    if made.type == _SCALARS["bytes"]:
        return raw  # escaped there as well
    return re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1]), raw)
