"""Encoding of records as JSON columns, checked to be readable before they are stored.

A spec document is stored in parts: the entry of each endpoint beside the endpoint, so that one
change is small, and the rest of the document with the endpoints' names.

A spec document lists entries. Of each entry that is an endpoint's own, the list keeps the name
only; whatever else stands there (a model repository, which makes many endpoints) stays in it.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError

T = TypeVar("T")
Document = dict[str, Any]


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


def take_apart(spec: Document, names: Collection[str]) -> tuple[Document, dict[str, Document]]:
    """`spec` without the entries of `names`, and those entries.

    A string in the list stands for the entry of that name; anything else is in a list of its own.
    """
    listed = spec.get("endpoints")
    if not isinstance(listed, list):
        return spec, {}
    entries: dict[str, Document] = {}
    places: list[str | list[Any]] = []
    for entry in listed:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in names and name not in entries:
            entries[name] = entry
            places.append(name)
        else:
            places.append([entry])
    return {**spec, "endpoints": places}, entries


def put_together(spec: Document, entries: Mapping[str, Document | None]) -> Document:
    """The document that `take_apart` took apart.

    Raises:
        KeyError: An entry is missing.
    """
    places = spec.get("endpoints")
    if not isinstance(places, list):
        return spec
    listed = [entries[key] if isinstance(key, str) else key[0] for key in places]
    return {**spec, "endpoints": listed}
