"""Pairs of answers of a version and of its shadow to the same request, and whether they agree."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.core.spec_rollout import DisagreementSpec
from headrace.rollout.readings import PairCounts
from headrace.serving.report import Answer, SampledTensor

_MOST_WAITING: Final = 50_000
_MOST_WAITING_BYTES: Final = 64 << 20
_LONGEST_WAIT_S: Final = 60.0
_MOST_DISTANCE: Final = 1e100
"""Of one pair; sums of larger numbers could become infinite, which JSON cannot express."""


@dataclass(slots=True)
class _Waiting:
    """Answers of one arm that have no counterpart yet, the oldest first."""

    answers: OrderedDict[str, tuple[float, Answer]] = field(default_factory=OrderedDict)
    size_bytes: int = 0

    def add(self, answer: Answer, now: float) -> None:
        """Keep an answer; the oldest go when they are too many, too large or too old."""
        self.pop(answer.answer_id)
        self.answers[answer.answer_id] = (now, answer)
        self.size_bytes += answer.size_bytes
        while self.answers:
            oldest, (since, _) = next(iter(self.answers.items()))
            is_full = len(self.answers) > _MOST_WAITING or self.size_bytes > _MOST_WAITING_BYTES
            if not is_full and now - since <= _LONGEST_WAIT_S:
                return
            self.pop(oldest)

    def pop(self, answer_id: str) -> Answer | None:
        """Remove an answer and return it; None if it is not here."""
        _, answer = self.answers.pop(answer_id, (0.0, None))
        if answer is not None:
            self.size_bytes -= answer.size_bytes
        return answer


@dataclass(slots=True, kw_only=True)
class Pairing:
    """Holds answers until their counterpart comes; bounded in number, in bytes and in age.

    Answers are paired by the id that the gateway gives a request and its copy. Callers cannot
    choose it, and which answers are let go does not depend on what they say.
    """

    metric: DisagreementSpec
    _primary: _Waiting = field(default_factory=_Waiting)
    _shadow: _Waiting = field(default_factory=_Waiting)
    _pairs: int = 0
    _disagreements: int = 0
    _unanswered: int = 0
    _distance: float = 0.0

    def add_primary(self, answers: Iterable[Answer], now: float) -> None:
        """Take answers that callers got."""
        for answer in answers:
            copy = self._shadow.pop(answer.answer_id)
            if copy is None:
                self._primary.add(answer, now)
            else:
                self._compare(answer, copy)

    def add_shadow(self, answers: Iterable[Answer], now: float) -> None:
        """Take answers to copies."""
        for answer in answers:
            original = self._primary.pop(answer.answer_id)
            if original is None:
                self._shadow.add(answer, now)
            else:
                self._compare(original, answer)

    def take(self) -> PairCounts:
        """Return what was counted since the last call."""
        counts = PairCounts(
            pairs=self._pairs,
            disagreements=self._disagreements,
            unanswered=self._unanswered,
            distance_sum=self._distance,
        )
        self._pairs = self._disagreements = self._unanswered = 0
        self._distance = 0.0
        return counts

    def _compare(self, primary: Answer, shadow: Answer) -> None:
        if primary.failed:
            return  # there is nothing to agree with
        if shadow.failed:
            self._unanswered += 1
            return
        self._pairs += 1
        if primary.outputs != shadow.outputs:  # byte for byte, which most pairs are equal by
            self._disagreements += not agree(primary, shadow, self.metric)
            self._distance += distance(primary, shadow)


def agree(primary: Answer, shadow: Answer, metric: DisagreementSpec) -> bool:
    """Whether two answers have the same outputs, and their values the same shapes and are near.

    Floats are near within the metric's tolerances, whatever their precision. Integers, booleans and
    texts must be equal, integers whatever their width.
    """
    outputs = {tensor.name: tensor for tensor in primary.outputs}
    others = {tensor.name: tensor for tensor in shadow.outputs}
    return outputs.keys() == others.keys() and all(
        _is_near(outputs[name], others[name], metric) for name in outputs
    )


def distance(primary: Answer, shadow: Answer) -> float:
    """Mean absolute difference of the finite numbers in two answers; 0 where there are none."""
    others = {tensor.name: tensor for tensor in shadow.outputs}
    total, count = 0.0, 0
    for tensor in primary.outputs:
        other = others.get(tensor.name)
        if other is None or other.shape != tensor.shape or "O" in tensor.dtype + other.dtype:
            continue
        one, two = (_numbers(tensor).astype(np.float64) for tensor in (tensor, other))
        finite = np.isfinite(one) & np.isfinite(two)
        with np.errstate(over="ignore"):
            apart = np.minimum(np.abs(one[finite] - two[finite]), _MOST_DISTANCE)
        total += float(apart.sum())
        count += apart.size
    return min(total / count, _MOST_DISTANCE) if count else 0.0


def _is_near(one: SampledTensor, other: SampledTensor, metric: DisagreementSpec) -> bool:
    if one.shape != other.shape:
        return False
    if "O" in one.dtype + other.dtype:
        return one.dtype == other.dtype and one.items == other.items
    baseline, candidate = _numbers(one), _numbers(other)
    kinds = {array.dtype.kind.replace("u", "i") for array in (baseline, candidate)}
    if kinds != {"f"}:
        return len(kinds) == 1 and np.array_equal(baseline, candidate)
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.isclose(
            candidate.astype(np.float64),
            baseline.astype(np.float64),
            rtol=metric.relative_tolerance,
            atol=metric.absolute_tolerance,
            equal_nan=True,
        )
    return bool(near.all())


def _numbers(tensor: SampledTensor) -> Array:
    return np.frombuffer(tensor.data, tensor.dtype)
