"""How does a caller say which generation it has read, so that no two writers lose an update?

RFC 9110, section 13: `If-Match: "3"` changes generation 3 only, `If-Match: *` whatever is there,
`If-None-Match: *` only what is not there yet.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Final

from fastapi import Depends, Header

from headrace.control.problems import StaleError
from headrace.core import ConflictError, InvalidArgumentError

_TAGS: Final = re.compile(r'\s*"(\d{1,18})"\s*')
_MAX_HEADER: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Precondition:
    """What has to be so before a change is made.

    `generations`: those that the caller would change; None for any.
    """

    generations: tuple[int, ...] | None = None
    must_exist: bool = False
    must_not_exist: bool = False

    def expected(self, name: str, current: int) -> int | None:
        """The generation that the change has to find; None if any will do.

        Args:
            current: The endpoint's generation; 0 if there is none.

        Raises:
            StaleError: It is not as the caller wants it already.
        """
        if self.must_not_exist:
            if current:
                raise StaleError(f"endpoint '{name}' exists already, at generation {current}")
            return 0
        if self.must_exist and not current:
            raise StaleError(f"endpoint '{name}' does not exist")
        if self.generations is None:
            return None
        if current not in self.generations:
            told = ", ".join(map(str, self.generations))
            message = (
                f"endpoint '{name}' is at generation {current}, not {told}: somebody changed it "
                "meanwhile; read it again"
            )
            raise StaleError(message)
        return current

    @contextmanager
    def held(self) -> Iterator[None]:
        """Tells a change that came in between as the precondition's failure."""
        try:
            yield
        except ConflictError as error:
            if self == Precondition():
                raise
            raise StaleError(str(error)) from error


def _precondition(
    if_match: Annotated[
        str | None,
        Header(max_length=_MAX_HEADER, description='The generation that was read, as `"3"`.'),
    ] = None,
    if_none_match: Annotated[
        str | None,
        Header(max_length=_MAX_HEADER, description="`*`: only if there is none yet."),
    ] = None,
) -> Precondition:
    if if_none_match is not None and (if_none_match.strip() != "*" or if_match is not None):
        raise InvalidArgumentError("If-None-Match takes * only here, and no If-Match beside it")
    if if_none_match is not None:
        return Precondition(must_not_exist=True)
    if if_match is None:
        return Precondition()
    if if_match.strip() == "*":
        return Precondition(must_exist=True)
    found = [_TAGS.fullmatch(tag) for tag in if_match.split(",")]
    numbers = [int(match[1]) for match in found if match is not None]
    if len(numbers) != len(found):
        message = f'If-Match takes generations as "3", or *, not {if_match[:100]!r}'
        raise InvalidArgumentError(message)
    return Precondition(generations=tuple(numbers), must_exist=True)


IfMatch = Annotated[Precondition, Depends(_precondition)]
