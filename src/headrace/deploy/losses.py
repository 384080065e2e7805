"""What would an export lose? Named with its place and a way out, all at once."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core import InvalidArgumentError, UnsupportedError
from headrace.deploy.notes import Note
from headrace.deploy.written import is_within

_INDEX: Final = re.compile(r"\[[^\]]*\]")


@dataclass(frozen=True, slots=True)
class Loss:
    """One setting that a target cannot express."""

    place: str
    why: str
    way_out: str

    @property
    def field(self) -> str:
        """The setting, wherever it stands: what `--allow-loss` takes."""
        return _INDEX.sub("[]", self.place)

    def left_out(self, target: str) -> Note:
        """What has to be said where it may be lost, and is."""
        return Note(f"left out, {target} {self.why}", self.place)

    def __str__(self) -> str:
        return f"{self.place}: {self.why}; {self.way_out}"


class NotExpressibleError(UnsupportedError):
    """The spec says what the target cannot express; `losses` names all of it."""

    def __init__(self, target: str, losses: Sequence[Loss]) -> None:
        self.target = target
        self.losses = tuple(losses)
        count = len(self.losses)
        head = f"{target} cannot express {count} setting{'' if count == 1 else 's'} of the spec:"
        fields = dict.fromkeys(loss.field for loss in self.losses)
        tail = "to leave them out all the same: " + " ".join(f"--allow-loss {f}" for f in fields)
        super().__init__("\n  ".join([head, *map(str, self.losses), tail]))


def accepted(target: str, losses: Iterable[Loss], allowed: Iterable[str]) -> tuple[Loss, ...]:
    """The losses, all of which somebody said they may be.

    Args:
        allowed: Fields such as `endpoints[].sticky`; what stands within one is allowed too.

    Raises:
        NotExpressibleError: Some may not be.
        InvalidArgumentError: An allowed one would not be lost: it is a typing mistake, or outdated.
    """
    found = tuple(dict.fromkeys(losses))
    fields = tuple(_INDEX.sub("[]", field) for field in allowed)
    refused = [loss for loss in found if not any(is_within(loss.field, f) for f in fields)]
    if refused:
        raise NotExpressibleError(target, refused)
    idle = [f for f in fields if not any(is_within(loss.field, f) for loss in found)]
    if idle:
        lost = ", ".join(dict.fromkeys(loss.field for loss in found)) or "nothing"
        msg = f"--allow-loss {idle[0]}: that is not lost here; {target} would lose {lost}"
        raise InvalidArgumentError(msg)
    return found
