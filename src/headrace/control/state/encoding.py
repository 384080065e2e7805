"""How do messages stand in a text column? As JSON, checked to be readable before it is stored."""

from typing import Any, TypeVar

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError

T = TypeVar("T")


def encoded(value: object) -> str:
    """`value` as JSON.

    Raises:
        InvalidArgumentError: It has text that is no Unicode.
    """
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeError as error:
        raise InvalidArgumentError(f"cannot be stored: {error}") from error


def check_readable(text: str, of_type: type[T], *, what: str) -> None:
    """Refuse what `decoded` would not take later: JSON has no infinity, for instance.

    Storing it would keep every later start from reading the state.

    Raises:
        InvalidArgumentError: It would not.
    """
    try:
        msgspec.json.decode(text, type=of_type)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"{what} cannot be stored: {error}") from error


def decoded(text: str, of_type: type[T], *, what: str) -> T:
    """What `text` says.

    Raises:
        FailedPreconditionError: It says no such thing.
    """
    try:
        return msgspec.json.decode(text, type=of_type)
    except (msgspec.MsgspecError, UnicodeError) as error:
        message = f"what is stored of {what} cannot be read: {error}"
        raise FailedPreconditionError(message) from error


def maybe_document(text: str | None, *, what: str) -> dict[str, Any] | None:
    """A spec document, or None where there is none."""
    return None if text is None else decoded(text, dict[str, Any], what=what)


def clean(text: str) -> str:
    """`text` as every database takes it: NUL and half characters become U+FFFD.

    Callers choose request ids, and Postgres refuses NUL in any text.
    """
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")
