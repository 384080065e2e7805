"""Two texts of a row as one request, while the model takes them one by one."""

from collections.abc import Iterator, Sequence
from enum import StrEnum
from typing import Final

from headrace.core import Tensors

_SECOND: Final = " of the second text"


class Texts(StrEnum):
    """What the texts of a row are to the model.

    `ONE`: there is only one, or none. `TOGETHER`: two in one run, as cross-encoders take them.
    `APART`: two in a run each, as bi-encoders do; a request holds both.
    """

    ONE = "one"
    TOGETHER = "together"
    APART = "apart"


def apart(first: Sequence[Tensors], second: Sequence[Tensors]) -> list[Tensors]:
    """Requests of both texts, by requests of each."""

    def both() -> Iterator[Tensors]:
        for one, other in zip(first, second, strict=True):
            yield {**one, **{f"{name}{_SECOND}": array for name, array in other.items()}}

    return list(both())


def first_of(pair: Tensors) -> Tensors:
    """The request of the first text."""
    return {name: array for name, array in pair.items() if not name.endswith(_SECOND)}


def second_of(pair: Tensors) -> Tensors:
    """The request of the second one."""
    return {
        name.removesuffix(_SECOND): array for name, array in pair.items() if name.endswith(_SECOND)
    }
