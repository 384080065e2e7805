"""Where does an endpoint's part of the spec stand? With the endpoint, so that one change is small.

A spec document lists entries. Of each entry that is an endpoint's own, the list keeps the name
only; whatever else stands there (a model repository, which makes many endpoints) stays in it.
"""

from collections.abc import Collection, Mapping
from typing import Any

Document = dict[str, Any]


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
    listed = [entries[place] if isinstance(place, str) else place[0] for place in places]
    return {**spec, "endpoints": listed}
