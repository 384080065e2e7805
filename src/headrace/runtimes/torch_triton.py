"""Which tensors does a module take? What a `config.pbtxt` in Triton's layout says of it.

Triton asks for one with every TorchScript file, so models that come from there bring what
TorchScript leaves out: `MODEL/config.pbtxt` stands beside the numbered directory of the file.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from headrace.core import VARIABLE, Datatype, TensorSpec
from headrace.runtimes.tabular import refuse
from headrace.runtimes.torch_archive import MAX_TEXT_BYTES

CONFIG_NAME: Final = "config.pbtxt"
_TOKEN: Final = re.compile(
    r"""\s*(?:\#[^\n]*\s*)*  # comments
    (?P<token>[\w.+-]+|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|[\[\]{}<>:;,])""",
    re.VERBOSE,
)
_REST: Final = re.compile(r"(?:\s|\#[^\n]*)*\Z")
_MAX_DEPTH: Final = 32
_TYPES: Final = {f"TYPE_{kind}": kind for kind in Datatype if kind is not Datatype.BYTES} | {
    "TYPE_BF16": Datatype.FP32
}

Message = dict[str, list["str | Message"]]
"""A message's fields by name, each with all of its values."""


def find_config(path: Path) -> Path | None:
    """The configuration of the model at `path`: in its directory, or one above a numbered one."""
    directory = path if path.is_dir() else path.parent
    candidates = [directory / CONFIG_NAME] if path.is_dir() else []
    if directory.name.isdecimal():
        candidates.append(directory.parent / CONFIG_NAME)
    return next((file for file in candidates if file.is_file()), None)


def read_config(file: Path) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """The inputs and outputs that a configuration names; none if it leaves them out.

    Raises:
        UnsupportedModelError: It cannot be read, or names a tensor that cannot be served.
    """
    try:
        if file.stat().st_size > MAX_TEXT_BYTES:
            raise refuse(file, f"has more than {MAX_TEXT_BYTES} bytes")
        text = file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise refuse(file, error.strerror or str(error)) from error
    config = _parse(file, text)
    batch = (VARIABLE,) if _number(file, config, "max_batch_size") > 0 else ()
    return (
        tuple(_spec(file, batch, one) for one in config.get("input", ())),
        tuple(_spec(file, batch, one) for one in config.get("output", ())),
    )


def _spec(file: Path, batch: tuple[int, ...], tensor: "str | Message") -> TensorSpec:
    if isinstance(tensor, str):
        raise refuse(file, "has a value where a tensor belongs")
    name, kind = _text(tensor, "name"), _text(tensor, "data_type")
    if kind not in _TYPES:
        raise refuse(file, f"says of '{name}' no type that is served")
    try:
        dims = tuple(int(size) for size in tensor.get("dims", ()) if isinstance(size, str))
    except ValueError:
        dims = (VARIABLE - 1,)
    if not name or any(size < VARIABLE for size in dims):
        raise refuse(file, f"gives no name, or no sizes as 'dims', to '{name}'")
    return TensorSpec(name=name, datatype=_TYPES[kind], shape=(*batch, *dims))


def _text(message: Message, name: str) -> str:
    found = message.get(name, [""])[-1]
    return found if isinstance(found, str) else ""


def _number(file: Path, message: Message, name: str) -> int:
    text = _text(message, name) or "0"
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise refuse(file, f"says a {name} that is no size")
    return int(text)


def _parse(file: Path, text: str) -> Message:
    """The outermost message of a file in protobuf's text format."""
    tokens = list(_tokens(file, text))
    found, end = _message(file, tokens, 0, 0)
    if end < len(tokens):
        raise refuse(file, f"'{tokens[end]}' closes what was not opened")
    return found


def _tokens(file: Path, text: str) -> Iterator[str]:
    place = 0
    while not _REST.match(text, place):
        found = _TOKEN.match(text, place)
        if found is None:
            raise refuse(file, f"cannot be read from character {place} on")
        place = found.end()
        yield found["token"]


def _message(file: Path, tokens: list[str], at: int, depth: int) -> tuple[Message, int]:
    """The fields from token `at` on, and where they end."""
    if depth > _MAX_DEPTH:
        raise refuse(file, f"nests more than {_MAX_DEPTH} deep")
    fields: Message = {}
    while at < len(tokens) and tokens[at] not in "}>":
        name, at = tokens[at], at + 1
        if at < len(tokens) and tokens[at] == ":":
            at += 1
        if at < len(tokens) and tokens[at] == "[":
            values, at = _list(file, tokens, at + 1, depth)
        else:
            value, at = _value(file, tokens, at, depth)
            values = [value]
        fields.setdefault(name, []).extend(values)
        if at < len(tokens) and tokens[at] in ",;":
            at += 1
    return fields, at


def _list(file: Path, tokens: list[str], at: int, depth: int) -> tuple[list[str | Message], int]:
    values: list[str | Message] = []
    while at < len(tokens) and tokens[at] != "]":
        value, at = _value(file, tokens, at, depth)
        values.append(value)
        if at < len(tokens) and tokens[at] == ",":
            at += 1
    return values, at + 1


def _value(file: Path, tokens: list[str], at: int, depth: int) -> tuple[str | Message, int]:
    if at >= len(tokens):
        raise refuse(file, "ends in the middle of a field")
    if tokens[at] in "{<":
        message, end = _message(file, tokens, at + 1, depth + 1)
        if end >= len(tokens):
            raise refuse(file, "ends in the middle of a message")
        return message, end + 1
    if tokens[at] in "[]}>:;,":
        raise refuse(file, f"has '{tokens[at]}' where a value belongs")
    text = tokens[at]
    return (text[1:-1] if text[0] in "\"'" else text), at + 1
