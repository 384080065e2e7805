"""Where is a place read on from, so that its windows are as if every record had been counted once?

A state counts all records up to its own offset, which is never after what is delivered. What lies
between it and the group's offset is read again and counted, not scored. Where there is no such
state, it is made again of what the log still has.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

STALE_AFTER: Final = 10_000
"""Records; a state that is more behind is given up if less has to be read without it."""


class Restore(NamedTuple):
    """How windows come back.

    `read_from`, `scored_from`: offsets; what is read before `scored_from` is counted only.
    `is_rebuilt`: the state that there was, if any, is forgotten. `is_whole`: nothing is missing.
    """

    read_from: int
    scored_from: int
    is_rebuilt: bool
    is_whole: bool = True


def restore(
    kept: int | None, *, group: int, first: int, since: Callable[[], int | None]
) -> Restore:
    """How the windows of one place come back.

    Args:
        kept: The offset of the state that there is; None for none.
        group: Where the group is: what is before it has been delivered.
        first: The first offset that the log still has.
        since: Asks for the first record that windows at `group` may hold; None for it is not known.
    """
    group = max(group, first)
    usable = kept is not None and first <= kept <= group
    if usable and kept is not None and group - kept <= STALE_AFTER:
        return Restore(kept, group, is_rebuilt=False)
    asked = since()
    begin = first if asked is None else min(max(asked, first), group)
    if usable and kept is not None and kept >= begin:
        return Restore(kept, group, is_rebuilt=False)
    return Restore(begin, group, is_rebuilt=True, is_whole=begin > first or first == 0)
