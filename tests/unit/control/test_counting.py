from collections.abc import Mapping
from typing import Final

from headrace.control.rollouts.evidence import IntervalCounter, Predictions, RolloutReading, Split
from headrace.gateway import ArmStatistics
from headrace.rollout.readings import PairCounts
from tests.unit.rollout.readings import in_buckets

FAST, SLOW = (0.001, 0.0001), (0.5, 0.01)


def reading(
    at: float,
    *,
    split: Split | None = (10, 90),
    candidate: ArmStatistics | None = None,
    baseline: ArmStatistics | None = None,
    epoch: str = "a",
    predictions: Mapping[str, Predictions] | None = None,
    pairs: int = 0,
    all_told: bool = True,
    step_since: float | None = None,
    heard: frozenset[tuple[str, int]] | None = None,
    lost: Split | None = None,
    is_alive: tuple[bool, bool] = (True, True),
    step: int = 0,
    is_sticky: bool = False,
) -> RolloutReading:
    return RolloutReading(
        time_s=at,
        epoch=epoch,
        split=split,
        candidate=candidate or ArmStatistics(),
        baseline=baseline or ArmStatistics(),
        predictions=predictions or {},
        pairs=PairCounts(pairs=pairs),
        all_told=all_told,
        step_since=step_since,
        heard=heard,
        lost=lost,
        is_alive=is_alive,
        step=step,
        is_sticky=is_sticky,
    )


def total(requests: int, errors: int = 0, slow: int = 0) -> ArmStatistics:
    latency = {FAST: requests - slow, SLOW: slow}
    return ArmStatistics(requests=requests, errors=errors, latency=latency)


def test_an_interval_adds_what_the_totals_grew_by() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, candidate=total(100, 5, 1), baseline=total(900)))

    found = counter.read(reading(1.0, candidate=total(110, 7, 2), baseline=total(990)))

    assert found is not None
    assert found.share == 0.1
    assert (found.candidate.requests, found.candidate.errors) == (10, 2)
    assert found.baseline.requests == 90
    assert found.candidate.latency == in_buckets(
        lower_s=(0.001, 0.5), width_s=(0.0001, 0.01), counts=(9, 1)
    )


def test_an_interval_adds_the_tokens_of_each_version() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    before = ArmStatistics(requests=3, per_token={(0.02, 0.001): 2}, output_tokens={(24.0, 1.0): 3})
    after = ArmStatistics(
        requests=6,
        per_token={(0.02, 0.001): 3, (0.03, 0.001): 2},
        output_tokens={(24.0, 1.0): 3, (110.0, 10.0): 3},
    )
    counter.read(reading(0.0, candidate=before, baseline=total(900)))

    found = counter.read(reading(1.0, candidate=after, baseline=total(990)))

    assert found is not None
    assert found.candidate.per_token == in_buckets(
        lower_s=(0.02, 0.03), width_s=(0.001, 0.001), counts=(1, 2)
    )
    assert found.candidate.output_tokens == {110: 3}
    assert found.baseline.output_tokens == {}


ONE: Final = frozenset({("m-1", 7)})
TWO: Final = ONE | {("m-2", 8)}


def test_callers_count_while_one_split_is_in_force_and_all_replicas_keep_them() -> None:
    counter = IntervalCounter(warmup_s=10.0)
    looks = [
        (reading(0.0, split=None, heard=ONE), False),
        (reading(1.0, heard=None), False),  # the candidate answers and was not told yet
        (reading(2.0, heard=TWO), False),
        (reading(3.0, heard=TWO), True),
        (reading(4.0, split=(50, 50), heard=TWO), False),
        (reading(5.0, split=(50, 50), heard=TWO), True),
        (reading(6.0, split=(50, 50), heard=ONE), False),
        (reading(7.0, split=(50, 50), heard=ONE, epoch="b"), False),
        (reading(8.0, split=None, heard=ONE, epoch="b"), False),
        (reading(9.0, split=(50, 50), heard=ONE, epoch="b"), False),
        (reading(10.0, split=(50, 50), heard=None, epoch="b"), False),
        (reading(11.0, split=(50, 50), heard=None, epoch="b"), False),
    ]

    for look, is_counted in looks:
        assert counter.knows_callers(look) is is_counted, look.time_s
        counter.read(look)


def test_the_interval_in_which_the_split_changed_is_left_out() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, candidate=total(10)))

    changed = counter.read(reading(1.0, split=(50, 50), candidate=total(30)))
    after = counter.read(reading(2.0, split=(50, 50), candidate=total(80)))

    assert changed is None
    assert after is not None
    assert after.candidate.requests == 50
    assert after.share == 0.5


def test_what_fails_when_an_arm_dies_counts_once_by_the_split_until_then() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    dead = {"split": None, "lost": (10, 90), "is_alive": (False, True)}
    counter.read(reading(0.0, candidate=total(100), baseline=total(900)))

    died = counter.read(
        reading(1.0, candidate=total(110, 4), baseline=total(1020, 12), **dead)  # type: ignore[arg-type]
    )
    later = counter.read(
        reading(2.0, candidate=total(110, 4), baseline=total(1200, 12), **dead)  # type: ignore[arg-type]
    )
    back = counter.read(reading(3.0, candidate=total(112, 4), baseline=total(1300)))

    assert died is not None
    assert (died.share, died.duration_s) == (0.1, 1.0)
    assert (died.candidate.requests, died.candidate.errors) == (10, 4)
    # 30 of the baseline's 120 requests were the dead arm's share.
    assert (died.baseline.requests, died.baseline.errors) == (90, 9)
    assert died.candidate.latency == died.baseline.latency == {}
    assert later is None
    assert back is None
    assert counter.share == 0.1


def test_baseline_that_dies_gives_the_candidate_no_credit() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, split=(50, 50), candidate=total(100), baseline=total(100)))

    died = counter.read(
        reading(
            1.0,
            split=None,
            lost=(50, 50),
            is_alive=(True, False),
            candidate=total(160, 2),
            baseline=total(130, 20),
        )
    )

    assert died is not None
    assert (died.candidate.requests, died.candidate.errors) == (30, 1)
    assert (died.baseline.requests, died.baseline.errors) == (30, 20)


def test_interval_in_which_an_arm_dies_belongs_to_the_step_that_was_in_force() -> None:
    # Counted for another step it would let that one's evidence decide about this one.
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, step=2, is_sticky=True))
    alive = counter.read(reading(1.0, candidate=total(5), step=2, is_sticky=True))

    died = counter.read(
        reading(
            2.0,
            split=None,
            lost=(10, 90),
            is_alive=(False, True),
            candidate=total(9, 4),
            step=2,
            is_sticky=True,
        )
    )

    assert alive is not None
    assert died is not None
    assert (alive.step, alive.is_sticky) == (died.step, died.is_sticky) == (2, True)


def test_arm_that_dies_under_another_split_or_gateway_counts_for_none() -> None:
    for changes in ({"lost": (20, 80)}, {"lost": (10, 90), "epoch": "b"}):
        counter = IntervalCounter(warmup_s=0.0)
        counter.read(reading(0.0, candidate=total(100), baseline=total(900)))
        found = counter.read(
            reading(1.0, split=None, is_alive=(False, True), candidate=total(110, 4), **changes)
        )
        assert found is None


def test_nothing_counts_while_a_split_is_not_in_force() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0))

    assert counter.read(reading(1.0, split=None, candidate=total(10))) is None
    assert counter.read(reading(2.0, candidate=total(20))) is None
    assert counter.read(reading(3.0, candidate=total(30))) is not None


def test_in_the_warm_up_only_how_requests_ended_counts() -> None:
    counter = IntervalCounter(warmup_s=2.0)

    early = [counter.read(reading(float(t), candidate=total(10 * t, t))) for t in range(3)]
    warm = counter.read(reading(3.0, candidate=total(90, 2)))

    assert early[0] is None
    assert all(found.candidate.latency == {} for found in early[1:] if found)
    assert [found.candidate.errors for found in early[1:] if found] == [1, 1]
    assert warm is not None
    assert sum(warm.candidate.latency.values()) == 70
    assert counter.samples == 0  # the baseline got none


def test_a_gateway_that_started_anew_counts_from_its_own_beginning() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, candidate=total(1000)))

    assert counter.read(reading(1.0, candidate=total(10), epoch="b")) is None
    found = counter.read(reading(2.0, candidate=total(25), epoch="b"))

    assert found is not None
    assert found.candidate.requests == 15


def predicted(counts: dict[str, int], *, candidate: bool = True) -> Predictions:
    return Predictions(is_candidate=candidate, kind="class", counts=counts)


def test_predictions_are_summed_by_arm_over_replicas() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    before = {
        "a": predicted({"cat": 5}),
        "b": predicted({"cat": 1}),
        "c": predicted({"dog": 9}, candidate=False),
    }
    after = {
        "a": predicted({"cat": 7, "dog": 1}),
        "b": predicted({"cat": 2}),
        "c": predicted({"dog": 12}, candidate=False),
    }
    counter.read(reading(0.0, predictions=before))

    found = counter.read(reading(1.0, predictions=after))

    assert found is not None
    assert found.candidate.classes == {"cat": 3, "dog": 1}
    assert found.baseline.classes == {"dog": 3}


def test_a_replica_that_is_not_heard_for_once_loses_nothing() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, predictions={"a": predicted({"cat": 5})}))
    counter.read(reading(1.0))

    found = counter.read(reading(2.0, predictions={"a": predicted({"cat": 9})}))

    assert found is not None
    assert found.candidate.classes == {"cat": 4}


def test_nobody_s_answers_count_until_all_have_told_theirs() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, predictions={"a": predicted({"cat": 5})}))

    alone = counter.read(reading(1.0, predictions={"a": predicted({"cat": 7})}, all_told=False))
    both = {"a": predicted({"cat": 9}), "b": predicted({"cat": 3}, candidate=False)}
    together = counter.read(reading(2.0, predictions=both))

    assert alone is not None
    assert together is not None
    assert alone.candidate.classes == {}
    assert together.candidate.classes == {"cat": 4}
    assert together.baseline.classes == {"cat": 3}


def test_what_was_told_in_the_warm_up_never_counts_though_somebody_was_silent() -> None:
    counter = IntervalCounter(warmup_s=2.0)
    for at in range(3):
        cold = {"a": predicted({"cat": 10 * at})}
        counter.read(reading(float(at), predictions=cold, all_told=False))

    warm = counter.read(reading(3.0, predictions={"a": predicted({"cat": 21})}))

    assert warm is not None
    assert warm.candidate.classes == {"cat": 1}


def test_a_replica_that_began_anew_counts_from_zero() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, predictions={"a": predicted({"cat": 50})}))

    found = counter.read(reading(1.0, predictions={"a": predicted({"cat": 2})}))

    assert found is not None
    assert found.candidate.classes == {"cat": 2}


def test_scores_are_told_by_the_upper_edge_of_their_bucket() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    score = Predictions(is_candidate=True, kind="score", counts={"0.5": 3, "-1.0": 1})
    counter.read(reading(0.0))

    found = counter.read(reading(1.0, predictions={"a": score}))

    assert found is not None
    assert found.candidate.scores == {0.5: 3, -1.0: 1}
    assert found.candidate.classes == {}


def test_samples_are_those_of_the_smaller_arm_since_the_split_came() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0))
    counter.read(reading(1.0, candidate=total(5), baseline=total(50)))
    counter.read(reading(2.0, candidate=total(12), baseline=total(99)))
    before = counter.samples

    counter.read(reading(3.0, split=(50, 50), candidate=total(12), baseline=total(99)))

    assert before == 12
    assert counter.samples == 0


def test_samples_are_counted_anew_for_a_step_of_the_same_weight() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, step_since=0.0))
    counter.read(reading(1.0, candidate=total(5), baseline=total(50), step_since=0.0))
    assert counter.samples == 5

    counter.read(reading(2.0, candidate=total(9), baseline=total(99), step_since=1.5))
    assert counter.samples == 4


def test_samples_of_a_shadow_are_pairs() -> None:
    counter = IntervalCounter(warmup_s=0.0)
    counter.read(reading(0.0, split=(0, 100)))
    counter.read(reading(1.0, split=(0, 100), baseline=total(50), pairs=20))

    counter.read(reading(2.0, split=(0, 100), baseline=total(90), pairs=15))

    assert counter.samples == 35
