"""Which loaded models have to go, so that another one may come? The longest unused, if idle."""

from collections.abc import Iterable
from dataclasses import dataclass

from headrace.core import FailedPreconditionError

Key = tuple[str, str]
"""A model's name and version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model that takes memory. `is_busy`: it has requests, is being loaded, or is leaving."""

    key: Key
    size_bytes: int
    used_at: float
    is_busy: bool


def make_room(
    residents: Iterable[Resident], *, size_bytes: int, memory_bytes: int, max_loaded: int
) -> list[Key] | None:
    """The models to unload, so that one more of `size_bytes` fits.

    None if it would not fit even then: others are busy, and may be idle later.

    Raises:
        FailedPreconditionError: It is larger than `memory_bytes`: it never fits.
    """
    if size_bytes > memory_bytes:
        msg = f"it takes {size_bytes} bytes, and all models together may take {memory_bytes}"
        raise FailedPreconditionError(msg)
    there = list(residents)
    over_bytes = sum(resident.size_bytes for resident in there) + size_bytes - memory_bytes
    over_count = len(there) + 1 - max_loaded
    idle = sorted((r for r in there if not r.is_busy), key=lambda resident: resident.used_at)
    leaving: list[Key] = []
    for resident in idle:
        if over_bytes <= 0 and over_count <= 0:
            break
        over_bytes -= resident.size_bytes
        over_count -= 1
        leaving.append(resident.key)
    return leaving if over_bytes <= 0 and over_count <= 0 else None
