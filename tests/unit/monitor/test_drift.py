"""A drifted feature is named, and others are not, however often somebody looks."""

import msgspec
import numpy as np
import pytest

from headrace.monitor.drift import BLOCK_ROWS, DriftWatch, DriftWatchState, FeatureState
from tests.unit.monitor.streams import a_watch, normal, see, states

OK, DRIFTED, COLLECTING = FeatureState.OK, FeatureState.DRIFTED, FeatureState.COLLECTING


def ten(seed: int = 1) -> DriftWatch:
    return a_watch(list(normal(2000, 10, seed).T))


def test_the_drifted_one_of_ten_features_is_named_within_300_rows() -> None:
    """As `docs/how-to/drift.md` says of a shift by one standard deviation."""
    for seed in range(3):
        watch = ten(seed)
        table = normal(300, 10, 100 + seed)
        table[:, 3] += 1.0

        changes = see(watch, table, step=50)

        assert [one.name for one in changes] == ["x[3]"]
        assert changes[0].state is DRIFTED
        assert {name for name, state in states(watch).items() if state is not OK} == {"x[3]"}


def test_a_drift_after_many_rows_is_named_as_fast() -> None:
    watch = ten()
    assert not see(watch, normal(20_000, 10, 5), step=2000)
    table = normal(500, 10, 6)
    table[:, 7] += 1.0

    changes = see(watch, table, step=50)

    assert [one.name for one in changes] == ["x[7]"]
    assert changes[0].rows <= 500


@pytest.mark.slow
def test_undrifted_streams_stay_silent_even_without_a_margin() -> None:
    """At the edge of what is no drift, where the chance of a wrong alarm is largest."""
    wrong = 0
    shares = np.full(20, 0.05)
    watch = a_watch([normal(200_000, 1, seed)[:, 0] for seed in (1, 2)], alpha=0.1, margin=1e-9)
    one = watch.reference.features[0]
    for seed in range(300):
        random = np.random.default_rng(seed)
        watch.memory = DriftWatchState()
        for at in range(12):
            counts = [
                msgspec.structs.replace(
                    one.counts,
                    rows=100,
                    bins=random.multinomial(100, shares).tolist(),
                    out_of_range=0,
                )
                for _ in range(2)
            ]
            if watch.add(counts, now=float(at)):
                wrong += 1
                break

    assert wrong <= 30


def test_a_shift_within_the_margin_is_no_drift() -> None:
    watch = a_watch(list(normal(20_000).T))

    assert not see(watch, normal(50_000, 1, 3) + 0.15, step=2500)  # moves 6 % of the values


def test_missing_values_drift() -> None:
    watch = a_watch(list(normal(2000, 2).T))
    table = normal(400, 2, 9)
    table[::5, 1] = np.nan

    changes = see(watch, table)

    assert [one.name for one in changes] == ["x[1]"]
    assert changes[0].missing_ratio == pytest.approx(0.2, abs=0.05)
    assert "missing, 0.0% in the reference" in changes[0].why


def test_values_out_of_range_drift_although_few_move() -> None:
    watch = a_watch(list(normal(2000).T))
    table = normal(1000, 1, 9)
    table[::12, 0] = 99.0

    (change,) = see(watch, table)

    assert "beyond the reference's values" in change.why


def test_a_wrong_type_drifts() -> None:
    random = np.random.default_rng(1)
    whole = random.integers(0, 1000, 2000).astype(float)
    watch = a_watch([whole])
    table = random.integers(0, 1000, (600, 1)) + 0.0
    table[::6] += 0.5

    (change,) = see(watch, table)

    assert "no whole numbers" in change.why
    assert change.type_violation_ratio == pytest.approx(1 / 6, abs=0.05)


def test_a_category_that_becomes_frequent_drifts() -> None:
    random = np.random.default_rng(1)
    before = random.choice(np.array(["a", "b", "c"], np.object_), 2000, p=[0.6, 0.3, 0.1])
    after = random.choice(np.array(["a", "b", "c"], np.object_), 400, p=[0.3, 0.3, 0.4])
    watch = a_watch([before])

    (change,) = see(watch, after[:, None])

    assert "in the reference" in change.why
    assert change.ks == pytest.approx(0.3, abs=0.15)


def test_a_new_category_drifts() -> None:
    watch = a_watch([np.array(["a", "b"] * 1000, np.object_)])

    (change,) = see(watch, np.array([["new"], ["a"], ["b"], ["a"]] * 60, np.object_))

    assert change.out_of_range_ratio == pytest.approx(0.25)


def test_a_drift_ends_when_values_are_as_before() -> None:
    watch = a_watch(list(normal(2000).T))
    see(watch, normal(500, 1, 2) + 2.0)
    assert states(watch) == {"x[0]": DRIFTED}

    (change,) = see(watch, normal(3000, 1, 3))

    assert (change.name, change.state) == ("x[0]", OK)
    assert not see(watch, normal(3000, 1, 4))


def test_few_values_are_not_judged() -> None:
    assert states(a_watch(list(normal(50).T))) == {"x[0]": COLLECTING}
    watch = a_watch(list(normal(2000).T))
    see(watch, normal(20, 1, 3))
    assert states(watch) == {"x[0]": COLLECTING}
    short = a_watch(list(normal(50).T))
    assert not see(short, normal(500, 1, 3) + 9.0)


@pytest.mark.slow
def test_what_is_kept_does_not_grow_and_survives_as_json() -> None:
    watch = a_watch(list(normal(2000).T))
    see(watch, normal(300_000, 1, 3), step=4 * BLOCK_ROWS)

    kept = msgspec.json.encode(watch.memory)
    again = DriftWatch(
        reference=watch.reference,
        settings=watch.settings,
        memory=msgspec.json.decode(kept, type=DriftWatchState),
    )

    assert len(watch.memory.blocks) < 80
    assert sum(block.rows for block in watch.memory.blocks) < 150_000
    assert [(r.name, r.ks, r.rows) for r in again.reports()] == [
        (r.name, r.ks, r.rows) for r in watch.reports()
    ]
    assert watch.memory.rows == 300_000


def test_the_true_distance_is_within_its_bounds() -> None:
    watch = a_watch(list(normal(5000).T))
    see(watch, normal(5000, 1, 3) + 1.0)

    (report,) = watch.reports()

    assert report.ks_low is not None
    assert report.ks_high is not None
    assert report.ks_low < 0.383 < report.ks_high


def test_nothing_comes_of_no_rows() -> None:
    watch = a_watch(list(normal(2000).T))

    assert watch.add([], now=1.0) == []
    assert watch.memory == DriftWatchState()


def test_what_had_drifted_before_a_restart_still_has_the_evidence_for_it() -> None:
    watch = ten()
    table = normal(500, 10, 6)
    table[:, 7] += 1.0
    see(watch, table, step=50)
    again = DriftWatch(reference=watch.reference, settings=watch.settings, memory=watch.memory)
    see(again, table[:50])

    drifted = [one for one in again.reports() if one.state is DRIFTED]

    assert [one.name for one in drifted] == ["x[7]"]
    assert drifted[0].evidence == drifted[0].needed
