"""Batches on real threads: each comes back, and a bug is not swallowed."""

import threading
from collections.abc import Sequence

import pytest

from headrace.core import SystemClock, UnavailableError
from headrace.streaming.codec import NOTHING_ADDED, Added, Answer
from headrace.streaming.in_flight import Batch
from headrace.streaming.pump import Finished
from headrace.streaming.records import NewRecord, Record
from headrace.streaming.scorer import Counted, ModelThreads
from headrace.streaming.writer import Result
from tests.unit.streaming.parts import records
from tests.unit.streaming.world import writer


class Scripted:
    """Answers when it is let, or raises."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.may_go = threading.Event()

    def answer(
        self, found: Sequence[Record], *, now_s: float, added: Added = NOTHING_ADDED
    ) -> list[Result]:
        del now_s, added
        assert self.may_go.wait(10)
        if self.error is not None:
            raise self.error
        return [Answer(one.key, b"done") for one in found]

    def count(self) -> Counted:
        return Counted(1, 2)


def threads_of(*scripted: Scripted) -> tuple[ModelThreads, threading.Semaphore]:
    woken = threading.Semaphore(0)
    return ModelThreads(scripted, writer(), clock=SystemClock(), wake=woken.release), woken


def collected(threads: ModelThreads, woken: threading.Semaphore) -> list[Finished]:
    assert woken.acquire(timeout=10)
    return threads.finished()


def test_one_runs_and_one_waits_and_then_there_is_no_room() -> None:
    scripted = Scripted()
    threads, woken = threads_of(scripted)
    seen = [(threads.is_free, threads.has_room)]
    for _ in range(2):
        threads.submit(Batch(records=records(b"a")))
        seen.append((threads.is_free, threads.has_room))
    scripted.may_go.set()
    found = collected(threads, woken) + collected(threads, woken)

    assert seen == [(True, True), (False, True), (False, False)]
    assert len(found) == 2
    assert threads.is_idle
    threads.close()


def test_outcomes_come_back_with_their_batch() -> None:
    scripted = Scripted()
    threads, woken = threads_of(scripted)
    batch = Batch(records=records(b"a", b"b"), tries=1)
    threads.submit(batch)
    scripted.may_go.set()
    threads.wait(10)
    (found,) = collected(threads, woken)

    assert found.batch is batch
    assert (found.runs, found.rows) == (1, 2)
    assert isinstance(found.result, list)
    assert [one.key for one in found.result if isinstance(one, NewRecord)] == [b"k0", b"k1"]
    threads.close()


def test_what_may_pass_comes_back_as_an_error() -> None:
    scripted = Scripted(UnavailableError("away"))
    threads, woken = threads_of(scripted)
    threads.submit(Batch(records=records(b"a")))
    scripted.may_go.set()
    (found,) = collected(threads, woken)

    assert isinstance(found.result, UnavailableError)
    threads.close()


def test_a_bug_is_raised_where_it_is_seen() -> None:
    scripted = Scripted(TypeError("a bug"))
    threads, woken = threads_of(scripted)
    threads.submit(Batch(records=records(b"a")))
    scripted.may_go.set()
    with pytest.raises(TypeError, match="a bug"):
        collected(threads, woken)
    threads.close()
