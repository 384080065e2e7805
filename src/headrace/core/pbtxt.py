"""Protobuf's text format without a schema, in which Triton's `config.pbtxt` is written.

Values stay text, as only the reader of a field knows its type. What the format also allows and no
configuration uses (extensions, `Any`, text in adjacent pieces) is refused.
"""

import re
from collections.abc import Iterator
from typing import Final

from headrace.core.errors import InvalidArgumentError

Message = dict[str, list["str | Message"]]
"""A message's fields by name, each with all of its values."""

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
        InvalidArgumentError: It is not of this format; the text says where, as a predicate.
    """
    tokens = list(_tokens(text))
    fields, end = _message(tokens, 0, 0)
    if end < len(tokens):
        msg = f"'{tokens[end]}' closes a message that is not open"
        raise InvalidArgumentError(msg)
    return fields


def messages(message: Message, name: str) -> list[Message]:
    """The values of a field of messages; values of another kind are left out."""
    return [value for value in message.get(name, ()) if isinstance(value, dict)]


def texts(message: Message, name: str) -> list[str]:
    """The values of a field of scalars; values of another kind are left out."""
    return [value for value in message.get(name, ()) if isinstance(value, str)]


def text(message: Message, name: str) -> str:
    """The value of a field: the last one, as protobuf has it; empty without one."""
    return (texts(message, name) or [""])[-1]


def count(message: Message, name: str) -> int | None:
    """The value of a field of whole numbers from 0 on; None without one.

    Raises:
        InvalidArgumentError: It is no such number.
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
    """The fields from token `index` on, and where they end."""
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
