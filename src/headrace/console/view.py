"""What is a page before it is written? A template and its values, made from answers of the API."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from headrace.console.visitor import Visitor
from headrace.control.auth.roles import Caller


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which page is asked for, by whom: `names` of its path, `query` after it, `now` since 1970."""

    visitor: Visitor
    caller: Caller
    names: Mapping[str, str]
    query: Mapping[str, str]
    now: float

    def word(self, name: str, *allowed: str) -> str:
        """What the query says of `name` if that is allowed, else the first that is."""
        given = self.query.get(name, "")
        return given if given in allowed else allowed[0]

    def number(self, name: str, *, least: int, most: int, usual: int) -> int:
        """A whole number of the query, brought into bounds."""
        given = self.query.get(name, "")
        is_number = given.isascii() and given.isdigit() and len(given) <= len(str(most))
        return min(max(int(given), least), most) if is_number else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A page: `say` is what a screen reader hears when it changes; `section` its place in the menu.

    `status` is HTTP's.
    """

    template: str
    title: str
    values: Mapping[str, object]
    section: str = ""
    say: str = ""
    status: int = 200


MakeView: TypeAlias = Callable[[Question], Awaitable[View]]
