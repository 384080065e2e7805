"""Descriptions of errors that files cause, without any content of the files.

A parser's message often quotes the text that it could not parse, and the file may be any file: a
caller can name a password file as a model. For a file that cannot be read in its format, only the
type of the error and the position are therefore shown.
"""

import re
from typing import Final

from msgspec import MsgspecError

UNDECODABLE: Final = (MsgspecError, UnicodeDecodeError, RecursionError)
"""Errors that msgspec raises for bytes that it cannot decode; the last two are not msgspec's
classes.
"""
_OF_MSGSPEC: Final = re.compile(
    r"JSON is malformed|Input data was truncated|Expected `|Object missing required field `"
)
"""Messages that name only types, positions and Headrace's field names."""
_PLACE: Final = re.compile(r"at `(\$[^`]*)`$")
_OFFSET: Final = re.compile(r"\boffset (\d{1,18})\b")
_POSITION: Final = re.compile(r"\bline (\d{1,8})\b(?:,? column (\d{1,8})\b)?")


def error_kind(error: BaseException) -> str:
    """Return the type of `error` and the position that it names, such as `line 3, column 4`."""
    text, name = str(error), type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MsgspecError):
        if _OF_MSGSPEC.match(text):
            return text
        match = _PLACE.search(text)
        return f"an unknown field or value{f' at `{match[1]}`' if match else ''}"
    line, column = getattr(error, "lineno", None), getattr(error, "colno", None)
    if isinstance(error, UnicodeDecodeError):
        return f"{name} at byte {error.start}"
    if not isinstance(line, int) and (position := _POSITION.search(text)):
        line, column = int(position[1]), int(position[2]) if position[2] else None
    if not isinstance(line, int):
        offset = _OFFSET.search(text)
        return f"{name} at offset {offset[1]}" if offset else name
    return f"{name} at line {line}" + (f", column {column}" if isinstance(column, int) else "")
