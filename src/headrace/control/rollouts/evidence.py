"""Evidence of rollouts: increments of one interval, and pairs of answers to one request."""

import math
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from headrace.core import Array
from headrace.core.spec.rollout import DisagreementSpec
from headrace.gateway import ArmStatistics, Bucket
from headrace.rollout.readings import ArmCounts, Increment, PairCounts, RewardSums
from headrace.serving.telemetry.report import RecordedAnswer, SampledTensor

NO_PAIRS: Final = PairCounts()
_NOTHING: Final = ArmStatistics()
Split = tuple[int, int]
"""Weights of the candidate and of its comparison."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predictions:
    """Counts of one replica's answers; `is_candidate` is its arm."""

    is_candidate: bool
    kind: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutReading:
    """One reading of all counters."""

    time_s: float
    epoch: str
    """Id of the gateway's process; another process counts from 0."""
    split: Split | None
    """Weights in force; None while they are not the requested ones."""
    candidate: ArmStatistics = _NOTHING
    baseline: ArmStatistics = _NOTHING
    predictions: Mapping[str, Predictions] = field(default_factory=dict)
    """Counts by replica, of the replicas that reported."""
    all_told: bool = True
    """Whether all answering replicas reported; else their arm's counts are incomplete. `time_s` is
    monotonic. `step` is the rollout's step, and `step_since` the time it came into force.
    """
    pairs: PairCounts = NO_PAIRS
    rewards: tuple[RewardSums, RewardSums] | None = None
    """Sums of the baseline and of the candidate so far."""
    heard: frozenset[tuple[str, int]] | None = None
    """Processes that answer and record their callers; None while one answers without recording."""
    step_since: float | None = None
    step: int = 0
    is_sticky: bool = False
    """Whether callers stay on their first arm."""
    lost: Split | None = None
    """Requested weights while an arm with a weight cannot answer; `split` is None then."""
    is_alive: tuple[bool, bool] = (True, True)
    """Whether the candidate and its comparison can answer."""


@dataclass(slots=True, kw_only=True)
class IntervalCounter:
    """Turns readings into increments."""

    warmup_s: float
    samples: int = 0
    """Requests of the smaller arm in this step."""
    _split: Split | None = None
    _since: float = 0.0
    _last: RolloutReading | None = None
    _counted: dict[str, Predictions] = field(default_factory=dict)
    _seen: tuple[int, int] = (0, 0)
    _last_split: Split | None = None
    _step_since: float | None = None

    @property
    def share(self) -> float | None:
        """The candidate's last share of the requests in force; None before the first."""
        return None if self._last_split is None else share_of(self._last_split)

    def knows_callers(self, reading: RolloutReading) -> bool:
        """Whether both versions recorded all callers of an interval that counts."""
        last = self._last
        if last is None or not self._goes_on(reading):
            return False
        return last.heard is not None and last.heard == reading.heard

    def read(self, reading: RolloutReading) -> Increment | None:
        """Return the increment since the last reading; None if it must not be counted."""
        last = self._last if self._goes_on(reading) else None
        split = reading.split
        if split is None and self._last is not None:
            return self._lost(self._last, reading)
        self._last = None if split is None else reading
        self._last_split = self._last_split if split is None else split
        if split != self._split:
            self._split, self._since = split, reading.time_s
            self._seen, self.samples = (0, 0), 0
        if reading.step_since != self._step_since:
            self._step_since = reading.step_since
            self._seen, self.samples = (0, 0), 0
        if split is None or last is None:
            self._counted.update(reading.predictions)
            return None
        is_cold = last.time_s - self._since < self.warmup_s
        classes = self._new_predictions(reading)
        if is_cold or reading.all_told:
            self._counted.update(reading.predictions)
        candidate = _arm(last.candidate, reading.candidate, classes[True])
        baseline = _arm(last.baseline, reading.baseline, classes[False])
        if is_cold:
            candidate, baseline = _cold(candidate), _cold(baseline)
        else:
            counts = self._seen
            self._seen = (counts[0] + candidate.requests, counts[1] + baseline.requests)
        copies = reading.pairs.pairs + reading.pairs.unanswered
        self.samples = _smaller(self._seen, split, copies + self.samples)
        rewards = reading.rewards
        return Increment(
            at=reading.time_s,
            duration_s=reading.time_s - last.time_s,
            share=share_of(split),
            step=reading.step,
            is_sticky=reading.is_sticky,
            candidate=candidate,
            baseline=baseline,
            pairs=reading.pairs,
            baseline_reward=rewards[0] if rewards else None,
            candidate_reward=rewards[1] if rewards else None,
        )

    def _lost(self, last: RolloutReading, reading: RolloutReading) -> Increment | None:
        """Return the outcomes of the interval in which an arm died, by the split until then.

        Requests followed that split until the other arm got the dead arm's share. Its requests
        beyond its own share are left out in proportion, failures too, so that the death gives it
        no credit. It is the last interval of its split.
        """
        self._last, self._split = None, None
        self._counted.update(reading.predictions)
        if reading.lost is None or (reading.lost, reading.epoch) != (last.split, last.epoch):
            return None
        share = share_of(reading.lost)
        none = Tally[tuple[str, str]]()
        candidate = _cold(_arm(last.candidate, reading.candidate, none))
        baseline = _cold(_arm(last.baseline, reading.baseline, none))
        if 0.0 < share < 1.0 and reading.is_alive == (False, True):
            baseline = _at_most(baseline, candidate.requests * (1.0 - share) / share)
        elif 0.0 < share < 1.0 and reading.is_alive == (True, False):
            candidate = _at_most(candidate, baseline.requests * share / (1.0 - share))
        return Increment(
            at=reading.time_s,
            duration_s=reading.time_s - last.time_s,
            share=share,
            step=last.step,
            is_sticky=last.is_sticky,
            candidate=candidate,
            baseline=baseline,
        )

    def _goes_on(self, reading: RolloutReading) -> bool:
        last = self._last
        return last is not None and (last.split, last.epoch) == (reading.split, reading.epoch)

    def _new_predictions(self, reading: RolloutReading) -> dict[bool, Tally[tuple[str, str]]]:
        """Return new answers by arm, kind and class; counters stay unread until all reported."""
        tallies: dict[bool, Tally[tuple[str, str]]] = {True: Tally(), False: Tally()}
        if not reading.all_told:
            return tallies
        for name, now in reading.predictions.items():
            earlier, counts = self._counted.get(name), Tally(now.counts)
            before = Tally(earlier.counts) if earlier else Tally[str]()
            more = counts - before if before <= counts else counts  # else the process restarted
            tallies[now.is_candidate].update({(now.kind, label): n for label, n in more.items()})
        return tallies


def _arm(before: ArmStatistics, now: ArmStatistics, classes: Tally[tuple[str, str]]) -> ArmCounts:
    return ArmCounts(
        requests=max(now.requests - before.requests, 0),
        errors=max(now.errors - before.errors, 0),
        rejections=max(now.rejections - before.rejections, 0),
        latency=_added(before.latency, now.latency),
        per_token=_added(before.per_token, now.per_token),
        output_tokens={
            int(lower): count
            for (lower, _), count in _added(before.output_tokens, now.output_tokens).items()
        },
        classes={label: n for (kind, label), n in classes.items() if kind == "class" and n},
        scores={float(edge): n for (kind, edge), n in classes.items() if kind == "score" and n},
    )


def _added(before: Mapping[Bucket, int], now: Mapping[Bucket, int]) -> dict[Bucket, int]:
    return dict(sorted((Tally(now) - Tally(before)).items()))


def _cold(counts: ArmCounts) -> ArmCounts:
    """Return only outcomes, without metrics that a warm-up of caches or connections changes."""
    return msgspec.structs.replace(
        counts, latency={}, per_token={}, output_tokens={}, classes={}, scores={}
    )


def _at_most(counts: ArmCounts, requests: float) -> ArmCounts:
    """Return `counts` scaled down to at most `requests`."""
    if counts.requests <= requests:
        return counts
    part = requests / counts.requests
    return msgspec.structs.replace(
        counts,
        requests=round(requests),
        errors=round(counts.errors * part),
        rejections=round(counts.rejections * part),
    )


def share_of(split: Split) -> float:
    """Return the candidate's share of the requests to both arms; 0 without requests."""
    total = sum(split)
    return split[0] / total if total else 0.0


def _smaller(answered: Split, split: Split, pairs: int) -> int:
    """Return the requests of the smaller arm with a weight, or the pairs in shadow mode."""
    counts = [count for count, weight in zip(answered, split, strict=True) if weight]
    return min(counts) if split[0] else pairs


_MAX_WAITING: Final = 50_000
_MAX_WAITING_BYTES: Final = 64 << 20
_LONGEST_WAIT_S: Final = 60.0
_MAX_DISTANCE: Final = 1e100
"""Largest distance of a pair: larger sums could become infinite, which JSON cannot express."""


@dataclass(slots=True)
class _Waiting:
    """Answers of one arm without counterpart, oldest first."""

    answers: OrderedDict[str, tuple[float, RecordedAnswer]] = field(default_factory=OrderedDict)
    size_bytes: int = 0

    def add(self, answer: RecordedAnswer, now: float) -> None:
        """Add an answer; drop the oldest ones beyond the bounds of number, size and age."""
        self.pop(answer.answer_id)
        self.answers[answer.answer_id] = (now, answer)
        self.size_bytes += answer.size_bytes
        while self.answers:
            oldest, (since, _) = next(iter(self.answers.items()))
            is_full = len(self.answers) > _MAX_WAITING or self.size_bytes > _MAX_WAITING_BYTES
            if not is_full and now - since <= _LONGEST_WAIT_S:
                return
            self.pop(oldest)

    def pop(self, answer_id: str) -> RecordedAnswer | None:
        """Remove an answer and return it; None if absent."""
        _, answer = self.answers.pop(answer_id, (0.0, None))
        if answer is not None:
            self.size_bytes -= answer.size_bytes
        return answer


@dataclass(slots=True, kw_only=True)
class Pairing:
    """Holds answers until their counterpart arrives; bounded in number, bytes and age.

    Answers are paired by the id that the gateway gives a request and its copy. Callers cannot
    choose it, and dropping does not depend on the content of an answer.
    """

    metric: DisagreementSpec
    _primary: _Waiting = field(default_factory=_Waiting)
    _shadow: _Waiting = field(default_factory=_Waiting)
    _counts: PairCounts = NO_PAIRS

    def add(self, answers: Iterable[RecordedAnswer], now: float, *, are_copies: bool) -> None:
        """Add answers that callers got, or answers to copies of requests."""
        waiting = self._primary, self._shadow
        others, own = waiting if are_copies else waiting[::-1]
        for answer in answers:
            counterpart = others.pop(answer.answer_id)
            if counterpart is None:
                own.add(answer, now)
            elif are_copies:
                self._compare(counterpart, answer)
            else:
                self._compare(answer, counterpart)

    def take(self) -> PairCounts:
        """Return the counts since the last call."""
        counts, self._counts = self._counts, NO_PAIRS
        return counts

    def _compare(self, primary: RecordedAnswer, shadow: RecordedAnswer) -> None:
        if primary.failed:
            return  # nothing to compare
        counts = self._counts
        if shadow.failed:
            self._counts = msgspec.structs.replace(counts, unanswered=counts.unanswered + 1)
            return
        differs = primary.outputs != shadow.outputs  # bytes: most pairs are identical
        self._counts = msgspec.structs.replace(
            counts,
            pairs=counts.pairs + 1,
            disagreements=counts.disagreements
            + (differs and not agree(primary, shadow, self.metric)),
            distance_sum=counts.distance_sum
            + (distance(primary, shadow, self.metric) if differs else 0.0),
        )


def agree(primary: RecordedAnswer, shadow: RecordedAnswer, metric: DisagreementSpec) -> bool:
    """Whether two answers have the same outputs and shapes, and values within the tolerances.

    Floats of any precision may differ by the metric's tolerances, and vectors of them by its cosine
    distance. Integers of any width, booleans and texts must be equal.
    """
    outputs = {tensor.name: tensor for tensor in primary.outputs}
    others = {tensor.name: tensor for tensor in shadow.outputs}
    return outputs.keys() == others.keys() and all(
        _is_near(outputs[name], others[name], metric) for name in outputs
    )


def distance(primary: RecordedAnswer, shadow: RecordedAnswer, metric: DisagreementSpec) -> float:
    """Return the mean absolute difference of the finite numbers in two answers; 0 without any.

    With a cosine distance in `metric`, return that of their vectors instead.
    """
    others = {tensor.name: tensor for tensor in shadow.outputs}
    total, count = 0.0, 0
    for tensor in primary.outputs:
        other = others.get(tensor.name)
        if other is None or other.shape != tensor.shape or "O" in tensor.dtype + other.dtype:
            continue
        first, second = (_numbers(tensor).astype(np.float64) for tensor in (tensor, other))
        finite = np.isfinite(first) & np.isfinite(second)
        with np.errstate(over="ignore"):
            apart = np.minimum(np.abs(first[finite] - second[finite]), _MAX_DISTANCE)
        if metric.max_cosine_distance is not None:
            apart = _cosine_distances(tensor, other)
            apart = apart[np.isfinite(apart)]
        total += float(apart.sum())
        count += apart.size
    return min(total / count, _MAX_DISTANCE) if count else 0.0


def _is_near(tensor: SampledTensor, other: SampledTensor, metric: DisagreementSpec) -> bool:
    if tensor.shape != other.shape:
        return False
    if "O" in tensor.dtype + other.dtype:
        return tensor.dtype == other.dtype and tensor.items == other.items
    baseline, candidate = _numbers(tensor), _numbers(other)
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
    if metric.max_cosine_distance is not None:
        apart = _cosine_distances(tensor, other)
        if apart.size:
            near = near.reshape(apart.size, -1).all(axis=1) | (apart <= metric.max_cosine_distance)
    return bool(near.all())


def _cosine_distances(tensor: SampledTensor, other: SampledTensor) -> Array:
    """Return the cosine distances of the vectors in two tensors of one shape, `[vectors]`.

    Vectors are the rows of floats of at least two dimensions and columns. All values of a tensor of
    which a sample was recorded are one vector. The distance to a vector of zeros is NaN.
    """
    first, second = _numbers(tensor), _numbers(other)
    *rows, columns = tensor.shape or [0]
    if {first.dtype.kind, second.dtype.kind} != {"f"} or not rows or columns == 1 or not first.size:
        return np.empty(0)
    size = columns if first.size == math.prod(tensor.shape) else first.size
    left, right = (array.astype(np.float64).reshape(-1, size) for array in (first, second))
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
        distances: Array = 1.0 - (left * right).sum(axis=1) / norms
    return distances


def _numbers(tensor: SampledTensor) -> Array:
    return np.frombuffer(tensor.data, tensor.dtype)
