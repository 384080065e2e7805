"""Every shard is done once, and every row told once, whoever is lost on the way."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Code
from headrace.jobs.engines.ray import TRIES, ShardTracker, WorkerError, WorkersLostError
from headrace.jobs.engines.ray_worker import ShardOutcome, ShardProgress
from headrace.jobs.messages import Done, Shard
from headrace.jobs.running import JobCallbacks

ROWS, ERRORS = 10, 2


@dataclass
class Counts:
    rows: int = 0
    errors: int = 0
    samples: list[str] = field(default_factory=list)

    def callbacks(self) -> JobCallbacks:
        def on_rows(rows: int, errors: int, samples: Sequence[str]) -> None:
            self.rows, self.errors = self.rows + rows, self.errors + errors
            self.samples += samples

        return JobCallbacks(on_rows=on_rows, is_stopped=lambda: False)


def shards(count: int) -> list[Shard]:
    return [Shard(number=i, file="rows", begin=i, end=i + 1, fingerprint="f") for i in range(count)]


def done(shard: Shard) -> ShardOutcome:
    line = Done(shard=shard.number, fingerprint="f", digest="d", rows=ROWS, errors=ERRORS, files=[])
    return ShardOutcome(shard=shard.number, done=line, samples=["a", "b"])


@given(st.lists(st.sampled_from(["saw", "lost", "done"]), max_size=60))
def test_whatever_is_seen_and_lost_counts_once(steps: list[str]) -> None:
    counts = Counts()
    tracker = ShardTracker(shards(4), counts.callbacks())
    finished: list[int] = []
    lost: dict[int, int] = {}
    shard = tracker.take()
    seen = 0
    for step in steps:
        if shard is None:
            break
        if step == "saw":
            seen = min(seen + 3, ROWS)
            tracker.advance(
                ShardProgress(shard=shard.number, rows=seen, errors=min(seen, ERRORS)), shard
            )
            assert counts.rows == len(finished) * ROWS + seen
            continue
        if step == "lost":
            if lost.get(shard.number, 0) + 1 >= TRIES:
                break
            lost[shard.number] = lost.get(shard.number, 0) + 1
            tracker.lose(shard, "killed")
            assert tracker.waiting == 4 - len(finished)
        else:
            assert tracker.finish(done(shard)) is not None
            finished.append(shard.number)
        seen = 0
        assert (counts.rows, counts.errors) == (len(finished) * ROWS, len(finished) * ERRORS)
        shard = tracker.take()
    assert finished == list(range(len(finished)))


def test_samples_of_a_shard_are_told_once() -> None:
    counts = Counts()
    (shard,) = shards(1)
    tracker = ShardTracker([], counts.callbacks())
    tracker.advance(ShardProgress(shard=0, rows=5, errors=1, samples=["a"]), shard)
    tracker.finish(done(shard))

    assert counts.samples == ["a", "b"]


def test_what_a_worker_says_of_the_shard_before_is_not_counted() -> None:
    counts = Counts()
    before, now = shards(2)
    tracker = ShardTracker([], counts.callbacks())
    tracker.finish(done(before))
    tracker.advance(ShardProgress(shard=0, rows=ROWS), now)

    assert counts.rows == ROWS


def test_a_shard_that_ends_every_worker_ends_the_job_and_is_named() -> None:
    (shard,) = shards(1)
    tracker = ShardTracker([shard], Counts().callbacks())
    for _ in range(TRIES - 1):
        assert tracker.take() == shard
        tracker.lose(shard, "killed")

    with pytest.raises(WorkersLostError, match=r"4 workers were lost over shard 0 \(rows\)"):
        tracker.lose(shard, "out of memory")


def test_what_went_wrong_elsewhere_keeps_its_code_and_a_stop_is_none() -> None:
    tracker = ShardTracker(shards(1), Counts().callbacks())

    assert tracker.finish(ShardOutcome(shard=0, code=Code.CANCELLED, message="stopped")) is None
    with pytest.raises(WorkerError, match="disk is full") as caught:
        tracker.finish(ShardOutcome(shard=0, code=Code.FAILED_PRECONDITION, message="disk is full"))
    assert caught.value.code is Code.FAILED_PRECONDITION
