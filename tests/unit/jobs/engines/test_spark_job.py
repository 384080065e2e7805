"""What of a job of Spark is heard, until it ends, or nobody works on it for too long."""

import queue
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec
import pytest

from headrace.core import Code, UnavailableError
from headrace.jobs.engines.cluster import BEGIN_S
from headrace.jobs.engines.engine import Told
from headrace.jobs.engines.errand import Outcome, WorkerError
from headrace.jobs.engines.ledger import Ledger
from headrace.jobs.engines.spark_job import Run, finished
from headrace.jobs.messages import Done


def outcome(shard: int) -> bytes:
    line = Done(shard=shard, fingerprint="f", digest="d", rows=1, errors=0, files=[])
    return msgspec.json.encode(Outcome(shard=shard, done=line))


@dataclass
class Spark:
    """Tells outcomes step by step; a step is a minute. `busy`: the steps with a worker at work."""

    steps: list[list[bytes]]
    busy: set[int] = field(default_factory=set)
    end: Exception | None = None
    at: int = -1
    told: list[bytes] = field(default_factory=list)
    ended: "queue.SimpleQueue[Exception | None]" = field(default_factory=queue.SimpleQueue)

    def heard(self) -> list[bytes]:
        self.at += 1
        if self.at < len(self.steps):
            self.told += self.steps[self.at]
        if self.at == len(self.steps):
            self.ended.put(self.end)
        return self.told

    def shards(self, count: int) -> Iterator[Done]:
        run = Run(
            heard=self.heard, is_busy=lambda: self.at in self.busy, ended=self.ended, look_s=0.0
        )
        told = Told(on_rows=lambda *_: None, is_stopped=lambda: False)
        return finished(
            run, Ledger((), told), told, shards=count, clock=lambda: max(self.at, 0) * 60.0
        )


def numbers(found: Iterator[Done]) -> list[int]:
    return [one.shard for one in found]


def test_shards_come_as_they_are_done_and_once() -> None:
    spark = Spark([[outcome(1)], [], [outcome(1), outcome(0)], [outcome(2)]])

    assert numbers(spark.shards(3)) == [1, 0, 2]


def test_what_is_told_with_the_end_counts() -> None:
    spark = Spark([[], []])
    found = spark.shards(1)
    spark.ended.put(None)
    spark.steps[1] = [outcome(0)]

    assert numbers(found) == [0]


def test_an_end_with_shards_undone_is_told() -> None:
    with pytest.raises(UnavailableError, match="Spark ended with 2 shards undone"):
        numbers(Spark([[outcome(1)]]).shards(3))


@pytest.mark.parametrize(
    ("trace", "told"),
    [
        (
            "failed 4 times, most recent failure:\njava.lang.OutOfMemoryError: no heap\n\tat more",
            "Spark gave a shard up after 4 tries: java.lang.OutOfMemoryError: no heap. If workers",
        ),
        (
            "calling:\n: org.SparkException: SparkContext was shut down\n\tat T.run(T.java:8)",
            "Spark ended the job: org.SparkException: SparkContext was shut down; does its master",
        ),
        ("ModuleNotFoundError: No module named 'x'", "pip install 'headrace[batch,spark]'"),
        ("\n\tat a.b(C.java:1)\n", "Spark ended the job: nothing was told"),
    ],
)
def test_why_spark_gave_up_is_told_in_a_line(trace: str, told: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        numbers(Spark([], end=RuntimeError(trace)).shards(1))

    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_shard_that_cannot_be_done_ends_it_with_its_own_reason() -> None:
    wrong = Outcome(shard=0, code=Code.FAILED_PRECONDITION, message="disk is full")

    with pytest.raises(WorkerError, match="disk is full"):
        numbers(Spark([[msgspec.json.encode(wrong)]]).shards(1))


def test_a_cluster_without_a_place_for_a_worker_is_given_up_in_time() -> None:
    spark = Spark([[] for _ in range(99)])

    with pytest.raises(UnavailableError, match="no worker of Spark took a shard within 300 s"):
        numbers(spark.shards(1))
    assert spark.at * 60 == BEGIN_S + 60


def test_a_long_shard_is_waited_for_and_a_cluster_that_shrinks_to_nothing_later_is_not() -> None:
    long = Spark([[]] * 30 + [[outcome(0)]], busy=set(range(30)))
    lost = Spark([[outcome(0)]] + [[]] * 99, busy=set(range(20)))

    assert numbers(long.shards(1)) == [0]
    with pytest.raises(UnavailableError, match="no worker of Spark took a shard"):
        numbers(lost.shards(2))
    assert lost.at == 19 + 6
