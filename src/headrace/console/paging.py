"""Where in a long list is a page?"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

MOST_PAGES = 10_000
MOST_TEXT = 100
"""Letters of a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where in a long list this page is."""

    page: int
    count: int
    first: int
    last: int
    total: int


def pages_of(total: int, *, page: int, size: int, shown: int) -> Pages:
    """The place of a page with `shown` of `total` rows, where a full one has `size`."""
    first = (page - 1) * size + 1 if shown else 0
    return Pages(
        page=page,
        count=max(-(-total // size), 1),
        first=first,
        last=first + shown - 1 if shown else 0,
        total=total,
    )


def cut(rows: Sequence[T], *, page: int, size: int) -> tuple[Sequence[T], Pages]:
    """One page of all rows, and its place."""
    shown = rows[(page - 1) * size : page * size]
    return shown, pages_of(len(rows), page=page, size=size, shown=len(shown))
