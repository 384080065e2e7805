"""Do a version and its shadow agree? Pairs their answers to one request by its id. Pure."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from headrace.core.rollout_settings import DisagreementMetric
from headrace.rollout.readings import PairCounts
from headrace.serving.report import Answer

_MOST_WAITING: Final = 50_000
_LONGEST_WAIT_S: Final = 60.0


@dataclass(slots=True, kw_only=True)
class Pairing:
    """Holds answers until their counterpart comes; bounded in number and in age."""

    metric: DisagreementMetric
    _primary: OrderedDict[str, tuple[float, Answer]] = field(default_factory=OrderedDict)
    _shadow: OrderedDict[str, tuple[float, Answer]] = field(default_factory=OrderedDict)
    _pairs: int = 0
    _disagreements: int = 0
    _unanswered: int = 0
    _distance: float = 0.0

    def add_primary(self, answers: Iterable[Answer], now: float) -> None:
        """Take answers that callers got."""
        for answer in answers:
            found = self._shadow.pop(answer.request_id, None)
            if found is None:
                self._primary[answer.request_id] = (now, answer)
            else:
                self._compare(answer, found[1])
        _trim(self._primary, now)

    def add_shadow(self, answers: Iterable[Answer], now: float) -> None:
        """Take answers to copies."""
        for answer in answers:
            found = self._primary.pop(answer.request_id, None)
            if found is None:
                self._shadow[answer.request_id] = (now, answer)
            else:
                self._compare(found[1], answer)
        _trim(self._shadow, now)

    def take(self) -> PairCounts:
        """What was found since the last call."""
        found = PairCounts(
            pairs=self._pairs,
            disagreements=self._disagreements,
            unanswered=self._unanswered,
            distance_sum=self._distance,
        )
        self._pairs = self._disagreements = self._unanswered = 0
        self._distance = 0.0
        return found

    def _compare(self, primary: Answer, shadow: Answer) -> None:
        if primary.failed:
            return  # there is nothing to agree with
        if shadow.failed:
            self._unanswered += 1
            return
        self._pairs += 1
        self._disagreements += not agree(primary, shadow, self.metric)
        self._distance += distance(primary, shadow)


def agree(one: Answer, other: Answer, metric: DisagreementMetric) -> bool:
    """Whether two answers are the same within the metric's tolerances."""
    if one.digest == other.digest:
        return True
    if len(one.values) != len(other.values):
        return False
    pairs = list(zip(one.values, other.values, strict=True))
    # What was cut off differs somewhere beyond the values that are known.
    return all(_near(a, b, metric) for a, b in pairs) and any(a != b for a, b in pairs)


def distance(one: Answer, other: Answer) -> float:
    """Mean absolute difference of the numbers in two answers; 0 where there are none."""
    numbers = [
        abs(a - b)
        for a, b in zip(one.values, other.values, strict=False)
        if isinstance(a, float) and isinstance(b, float)
    ]
    return sum(numbers) / len(numbers) if numbers else 0.0


def _near(one: float | str, other: float | str, metric: DisagreementMetric) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    if one != one or other != other:  # noqa: PLR0124  # NaN is equal to NaN here only
        return one != one and other != other  # noqa: PLR0124  # as above
    return abs(one - other) <= metric.absolute_tolerance + metric.relative_tolerance * abs(one)


def _trim(waiting: OrderedDict[str, tuple[float, Answer]], now: float) -> None:
    """Let the oldest go: their counterpart was not copied, or got lost."""
    while waiting:
        at, _ = next(iter(waiting.values()))
        if len(waiting) <= _MOST_WAITING and now - at <= _LONGEST_WAIT_S:
            return
        waiting.popitem(last=False)
