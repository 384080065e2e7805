"""Simulated shadow rollouts: whatever ids callers send and wherever the models differ.

Replicas, pages of answers, pairs and verdicts are the product's own. Played are the callers, the
gateway (`tests/e2e/gateway/test_splits.py` shows that Envoy does the same) and the models.
"""

import random
import uuid
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np
import pytest

from headrace.control.rollouts.evidence import IntervalCounter, Pairing, RolloutReading
from headrace.control.rollouts.observation import RolloutWatch
from headrace.core import Array, InferResponse
from headrace.core.spec.rollout import DisagreementSpec, MetricsSpec, ShadowSpec
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import Names, Outcome
from headrace.serving.telemetry.observation import Observer
from headrace.serving.telemetry.report import AnswersPage, Observe
from tests.unit.serving.parts import Caller, a_state

Model = Callable[[Array, np.random.Generator], Array]
Ids = Callable[[random.Random, int], str]

SETTINGS: Final = ShadowSpec(
    warmup_s=0.0,
    metrics=MetricsSpec(
        errors=None,
        rejections=None,
        latency=None,
        predictions=None,
        disagreement=DisagreementSpec(),
    ),
)
SECONDS: Final = 25
PER_S: Final = 12


def the_same(values: Array, _chance: np.random.Generator) -> Array:
    return values.copy()


def within_tolerance(values: Array, chance: np.random.Generator) -> Array:
    """Every value is another number, none further off than half of the relative tolerance."""
    return values * (1 + chance.uniform(-0.005, 0.005, values.shape))


def differs_at(index: int) -> Model:
    def model(values: Array, _chance: np.random.Generator) -> Array:
        answer = values.copy()
        answer[..., index] += 1.0
        return answer

    return model


def repeated(_chance: random.Random, _number: int) -> str:
    return "job-1"


def shared_by_some(chance: random.Random, number: int) -> str:
    """1 in 10 requests has the id of another."""
    return f"id-{number - 1 if chance.random() < 0.1 else number}"


def missing(chance: random.Random, _number: int) -> str:
    """The gateway makes one."""
    return str(uuid.UUID(int=chance.getrandbits(128)))


def hostile(chance: random.Random, number: int) -> str:
    """Ids of answers before, empty and endless ones, what else a header may hold."""
    ids = ("", f"id-{chance.randrange(number + 1)}", "x" * 4000, "\xff\xfe", "null", "0" * 36)
    return chance.choice(ids)


CALLERS: Final = {ids.__name__: ids for ids in (repeated, shared_by_some, missing, hostile)}


@dataclass
class Replica:
    """The observer of one replica, read by cursor as the control plane does."""

    cursor: int = 0
    observer: Observer = field(default_factory=lambda: Observer(a_state()))

    def __post_init__(self) -> None:
        self.observer.observe(Observe(key="r1", answers_percent=100, pairs=True))

    def answer(self, headers: dict[str, str], outputs: dict[str, Array]) -> None:
        exchange = Caller().request("POST", "/v2/models/m/infer")
        exchange.headers.update({k.encode(): v.encode("latin-1") for k, v in headers.items()})
        self.observer.answered(exchange, InferResponse(model_name="m", outputs=outputs))

    def page(self) -> AnswersPage:
        page = self.observer.answers(self.cursor)
        self.cursor = page.cursor
        return msgspec.msgpack.decode(msgspec.msgpack.encode(page), type=AnswersPage)


def traffic(
    seed: int, ids: Ids, size: int, *, trusting: bool
) -> Iterator[tuple[int, dict[str, str], Array]]:
    """The second, the headers as the gateway sends them on, and the baseline's values.

    Args:
        trusting: The gateway takes the caller's id for the pair's.
    """
    chance, values = random.Random(seed), np.random.default_rng(seed)  # noqa: S311  # a simulation
    for number in range(SECONDS * PER_S):
        request_id, pair_id = ids(chance, number), str(uuid.UUID(int=chance.getrandbits(128)))
        headers = {
            "x-headrace-split": "r1",
            "x-request-id": request_id,
            "x-headrace-pair": request_id if trusting else pair_id,
        }
        yield number // PER_S, headers, values.normal(size=(1, size))


def outcome(seed: int, *, ids: Ids, model: Model, size: int = 8, trusting: bool = False) -> Outcome:
    """The verdict of one rollout: the first that is no wait, else the last.

    Copies are answered up to 3 s late and a fifth is never answered.
    """
    chance, noise = random.Random(seed + 1), np.random.default_rng(seed + 1)  # noqa: S311  # as above
    primary, shadow = Replica(), Replica()
    watch = RolloutWatch(
        evidence=RolloutEvidenceState.start(SETTINGS),
        counter=IntervalCounter(warmup_s=0.0),
        pairing=Pairing(metric=DisagreementSpec()),
        names=Names(baseline="version 1", candidate="version 2"),
        saved_at=0.0,
    )
    late: list[tuple[float, dict[str, str], Array]] = []
    requests = list(traffic(seed, ids, size, trusting=trusting))
    for second in range(SECONDS + 4):
        for _, headers, values in (one for one in requests if one[0] == second):
            primary.answer(headers, {"score": values})
            if chance.random() > 0.2:
                copied = headers | {"x-headrace-shadow": "1"}
                late.append((second + chance.uniform(0.0, 3.0), copied, model(values, noise)))
        for _, headers, values in (one for one in late if one[0] < second + 1):
            shadow.answer(headers, {"score": values})
        late = [one for one in late if one[0] >= second + 1]
        watch.pairing.add(primary.page().answers, float(second), are_copies=False)
        watch.pairing.add(shadow.page().answers, float(second), are_copies=True)
        reading = RolloutReading(
            time_s=float(second), epoch="1", split=(0, 100), pairs=watch.pairing.take()
        )
        increment = watch.counter.read(reading)
        if increment is not None:
            watch.evidence.add(increment)
        watch.judge(float(second))
        assert watch.verdict is not None
        if watch.verdict.outcome is Outcome.ROLL_BACK:
            break
    assert watch.verdict is not None
    return watch.verdict.outcome


def outcomes_of_the_same(callers: str, runs: int) -> Tally[Outcome]:
    """Of versions that are the same, in turns by the byte and within the tolerance."""
    models = (the_same, within_tolerance)
    return Tally(outcome(n, ids=CALLERS[callers], model=models[n % 2]) for n in range(runs))


@pytest.mark.slow
@pytest.mark.parametrize("callers", CALLERS)
def test_a_version_that_is_the_same_is_not_rolled_back(callers: str) -> None:
    assert outcomes_of_the_same(callers, 6)[Outcome.ROLL_BACK] == 0


@pytest.mark.parametrize("callers", ["repeated", "shared_by_some"])
def test_by_the_ids_of_callers_a_version_that_is_the_same_would_be_rolled_back(
    callers: str,
) -> None:
    assert outcome(1, ids=CALLERS[callers], model=the_same, trusting=True) is Outcome.ROLL_BACK


@pytest.mark.long
@pytest.mark.parametrize("callers", CALLERS)
def test_a_version_that_is_the_same_is_never_rolled_back(callers: str) -> None:
    """1,000 runs together."""
    assert outcomes_of_the_same(callers, 250) == {Outcome.WAIT: 250}


@pytest.mark.slow
@pytest.mark.parametrize(("index", "size"), [(64, 65), (64, 6000), (199, 6000), (4999, 6000)])
def test_a_version_that_differs_in_one_value_is_found(index: int, size: int) -> None:
    found = outcome(1, ids=hostile, model=differs_at(index), size=size)

    assert found is Outcome.ROLL_BACK


@pytest.mark.long
@pytest.mark.parametrize("index", [64, 199, 4999])
def test_a_version_that_differs_in_one_value_is_found_always(index: int) -> None:
    seen = Tally(
        outcome(seed, ids=hostile, model=differs_at(index), size=6000) for seed in range(200)
    )

    assert seen == {Outcome.ROLL_BACK: 200}
