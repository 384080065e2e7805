"""What can an output's answers mean: which class, or which value?"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.optimize.accuracy.scoring import Values

UNKNOWN: Final = -1.0
"""A class that no label names."""
_HALF: Final = 0.5
_PAIR: Final = 2
_TWO_CLASSES: Final = ({0}, {1}, {0, 1}, {-1, 1})

Read = Callable[[Array], Values]
"""Answers `[examples, ...]` of an output to a class, or a value, for each."""


def class_reads(answers: Array, labels: Array, names: Sequence[str]) -> list[tuple[Read, str]]:
    """How the answers can be classes, and what to call that; empty if they cannot.

    Args:
        answers: The baseline's, `[examples, ...]`.
        labels: Numbers of classes.
        names: Of the classes; empty where they have none.
    """
    width = int(np.prod(answers.shape[1:]))
    if width == 1 and answers.dtype.kind in "iub":
        return [(_plain, "output")]
    if width == 1 and answers.dtype.kind in "OSU" and names:
        place = {name: float(number) for number, name in enumerate(names)}
        return [(lambda found: _named(found, place), "the names in output")]
    if answers.dtype.kind != "f":
        return []
    present = set(np.unique(labels).tolist())
    if width == 1 and present in _TWO_CLASSES:
        in_unit = bool(((answers >= 0) & (answers <= 1)).all())
        cut, low = (_HALF if in_unit else 0.0), min(0.0, *present)
        return [(lambda found: np.where(_plain(found) > cut, 1.0, low), f"above {cut:g} in output")]
    is_row = max(answers.shape[1:], default=1) == width
    if width > 1 and is_row and labels.min() >= 0 and labels.max() < width:
        return [(_largest, "the largest score in output")]
    return []


def value_reads(answers: Array) -> list[tuple[Read, str]]:
    """How the answers can be one number each; of two scores, the second over the first."""
    width = int(np.prod(answers.shape[1:]))
    if width == 1 and answers.dtype.kind in "fiub":
        return [(_plain, "output")]
    if width == _PAIR and answers.dtype.kind == "f":
        return [(_second_over_first, "the second score over the first in output")]
    return []


def _plain(found: Array) -> Values:
    values: Values = found.reshape(len(found)).astype(np.float64)
    return values


def _largest(found: Array) -> Values:
    classes: Values = found.reshape(len(found), -1).argmax(axis=1).astype(np.float64)
    return classes


def _second_over_first(found: Array) -> Values:
    two = found.reshape(len(found), _PAIR).astype(np.float64)
    over: Values = two[:, 1] - two[:, 0]
    return over


def _named(found: Array, place: Mapping[str, float]) -> Values:
    texts = [
        one.decode(errors="replace") if isinstance(one, bytes) else str(one)
        for one in found.reshape(len(found)).tolist()
    ]
    return np.array([place.get(text, UNKNOWN) for text in texts], np.float64)
