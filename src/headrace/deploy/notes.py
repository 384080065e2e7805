"""What has to be said beside an export, each thing once with all the places that it is about."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """Something to say; `place` in the spec, empty where it is about all of it."""

    text: str
    place: str = ""


def told_once(notes: Iterable[Note]) -> tuple[str, ...]:
    """`PLACE, PLACE: text`, in the order in which each text came first."""
    places: dict[str, list[str]] = {}
    for note in notes:
        known = places.setdefault(note.text, [])
        if note.place and note.place not in known:
            known.append(note.place)
    return tuple(f"{', '.join(of)}: {text}" if of else text for text, of in places.items())
