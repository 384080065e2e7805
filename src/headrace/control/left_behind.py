"""What did a confined program leave, which may have left anything, and what does it say?"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TypeVar

import msgspec

from headrace.core import (
    Code,
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    UnsupportedModelError,
)

if TYPE_CHECKING:
    from headrace.optimize.convert_process import ConvertResult
    from headrace.optimize.profiling.messages import Failed

_MAX_BYTES: Final = 1 << 20
_Left = TypeVar("_Left", bound=msgspec.Struct)


def open_left(file: Path) -> BinaryIO:
    """What a program left; no link that it may have put there is followed, no pipe waited for.

    Raises:
        OSError: There is no such file, or it is none.
    """
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_left(file: Path, kind: type[_Left]) -> _Left | None:
    """The message that a program left; it may have written anything, and then it is None."""
    try:
        with open_left(file) as stream:
            return msgspec.json.decode(stream.read(_MAX_BYTES), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def error_of(told: "ConvertResult | Failed", path: Path, copy: Path) -> HeadraceError:
    """What a program told of `copy`, as an error of `path`."""
    if told.needs_code:
        return CodeNotAllowedError(str(path), told.needs_code, told.why_code)
    text = told.error.replace(str(copy), str(path))
    if told.code == Code.FAILED_PRECONDITION:
        return FailedPreconditionError(text)
    return UnsupportedModelError(text if str(path) in text else f"{path}: {text}")
