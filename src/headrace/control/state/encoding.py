"""Encoding of records as JSON columns, checked to be readable before they are stored.

A spec document is stored in parts: the entry of each endpoint beside the endpoint, so that a change
is small, and the rest of the document with the endpoints' names.

For an entry of a single endpoint, the stored list has only its name; other entries, such as a model
repository, which defines many endpoints, stay in the list.
"""

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError

T = TypeVar("T")
Document = dict[str, Any]


def encoded(value: object) -> str:
    """Return `value` as JSON.

    Raises:
        InvalidArgumentError: It contains text that is not valid Unicode.
    """
    try:
        return msgspec.json.encode(value).decode()
    except UnicodeError as error:
        raise InvalidArgumentError(f"cannot be stored: {error}") from error


def check_readable(text: str, of_type: type[T], *, description: str) -> None:
    """Check that `decoded` can read a text later: JSON has no infinity, for example.

    Otherwise no later start could read the state.

    Raises:
        InvalidArgumentError: `text` could not be decoded.
    """
    try:
        msgspec.json.decode(text, type=of_type)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(f"{description} cannot be stored: {error}") from error


def decoded(text: str, of_type: type[T], *, description: str) -> T:
    """Return the value decoded from `text`.

    Raises:
        FailedPreconditionError: `text` is not a valid `of_type`.
    """
    try:
        return msgspec.json.decode(text, type=of_type)
    except (msgspec.MsgspecError, UnicodeError) as error:
        message = f"what is stored of {description} cannot be read: {error}"
        raise FailedPreconditionError(message) from error


def maybe_document(text: str | None, *, description: str) -> dict[str, Any] | None:
    """Return the decoded spec document; None for None."""
    return None if text is None else decoded(text, dict[str, Any], description=description)


def clean(text: str) -> str:
    """Return `text` in a form valid for every database: NUL and lone surrogates become U+FFFD.

    Callers choose request ids, and Postgres rejects NUL in text.
    """
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def split_document(spec: Document, names: Collection[str]) -> tuple[Document, dict[str, Document]]:
    """Return `spec` without the entries of `names`, and those entries.

    A string in the list refers to the entry of that name; any other entry is wrapped in a list.
    """
    listed = spec.get("endpoints")
    if not isinstance(listed, list):
        return spec, {}
    entries: dict[str, Document] = {}
    path_parts: list[str | list[Any]] = []
    for entry in listed:
        name = entry.get("name") if isinstance(entry, dict) else None
        if isinstance(name, str) and name in names and name not in entries:
            entries[name] = entry
            path_parts.append(name)
        else:
            path_parts.append([entry])
    return {**spec, "endpoints": path_parts}, entries


def join_document(spec: Document, entries: Mapping[str, Document | None]) -> Document:
    """Return the document that `split_document` split.

    Raises:
        KeyError: An entry is missing.
    """
    locations = spec.get("endpoints")
    if not isinstance(locations, list):
        return spec
    listed = [entries[key] if isinstance(key, str) else key[0] for key in locations]
    return {**spec, "endpoints": listed}
