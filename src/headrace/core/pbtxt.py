"""Parser of protobuf's text format without a schema, as in Triton's `config.pbtxt`.

Values stay text, because only the reader of a field knows its type. Features of the format that no
configuration uses (extensions, `Any`, adjacent string pieces) are refused.
"""

import re
from collections.abc import Iterator
from typing import Final

from headrace.core.errors import InvalidArgumentError

Message = dict[str, list["str | Message"]]
"""Fields of a message by name, each with all of its values."""

_TOKEN: Final = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*  # comments
    (?P<token>[\w.+-]+|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[\[\]{}<>:;,])""",
    re.VERBOSE,
)
_REST: Final = re.compile(r"(?:\s|\#[^\n]*)*\Z")
_MAX_DEPTH: Final = 32


def parse_message(text: str) -> Message:
    """Return the outermost message of a document.

    Raises:
        InvalidArgumentError: It is not in this format; the message gives the position.
    """
    tokens = list(_tokens(text))
    fields, end = _message(tokens, 0, 0)
    if end < len(tokens):
        msg = f"'{tokens[end]}' closes a message that is not open"
        raise InvalidArgumentError(msg)
    return fields


def messages(message: Message, name: str) -> list[Message]:
    """Return the message values of a field; other values are left out."""
    return [value for value in message.get(name, ()) if isinstance(value, dict)]


def texts(message: Message, name: str) -> list[str]:
    """Return the scalar values of a field; other values are left out."""
    return [value for value in message.get(name, ()) if isinstance(value, str)]


def text(message: Message, name: str) -> str:
    """Return the value of a field, the last one as in protobuf; empty without one."""
    return (texts(message, name) or [""])[-1]


def count(message: Message, name: str) -> int | None:
    """Return the value of a field of non-negative whole numbers; None without one.

    Raises:
        InvalidArgumentError: It is not such a number.
    """
    value = text(message, name)
    if not value:
        return None
    if not re.fullmatch(r"[0-9]{1,9}", value):
        msg = f"says a {name} that is no size"
        raise InvalidArgumentError(msg)
    return int(value)


def _tokens(document: str) -> Iterator[str]:
    start = 0
    while not _REST.match(document, start):
        match = _TOKEN.match(document, start)
        if match is None:
            msg = f"cannot be parsed from character {start} on"
            raise InvalidArgumentError(msg)
        start = match.end()
        yield match["token"]


def _message(tokens: list[str], index: int, depth: int) -> tuple[Message, int]:
    """Return the fields from token `index` on, and the index after them."""
    if depth > _MAX_DEPTH:
        msg = f"nests deeper than {_MAX_DEPTH} levels"
        raise InvalidArgumentError(msg)
    fields: Message = {}
    while index < len(tokens) and tokens[index] not in "}>":
        name, index = tokens[index], index + 1
        if index < len(tokens) and tokens[index] == ":":
            index += 1
        if index < len(tokens) and tokens[index] == "[":
            values, index = _list(tokens, index + 1, depth)
        else:
            value, index = _value(tokens, index, depth)
            values = [value]
        fields.setdefault(name, []).extend(values)
        if index < len(tokens) and tokens[index] in ",;":
            index += 1
    return fields, index


def _list(tokens: list[str], index: int, depth: int) -> "tuple[list[str | Message], int]":
    values: list[str | Message] = []
    while index < len(tokens) and tokens[index] != "]":
        value, index = _value(tokens, index, depth)
        values.append(value)
        if index < len(tokens) and tokens[index] == ",":
            index += 1
    return values, index + 1


def _value(tokens: list[str], index: int, depth: int) -> "tuple[str | Message, int]":
    if index >= len(tokens):
        msg = "ends in the middle of a field"
        raise InvalidArgumentError(msg)
    if tokens[index] in "{<":
        message, end = _message(tokens, index + 1, depth + 1)
        if end >= len(tokens):
            msg = "ends in the middle of a message"
            raise InvalidArgumentError(msg)
        return message, end + 1
    if tokens[index] in "[]}>:;,":
        msg = f"has '{tokens[index]}' where a value belongs"
        raise InvalidArgumentError(msg)
    token = tokens[index]
    return (token[1:-1] if token[0] in "\"'" else token), index + 1
