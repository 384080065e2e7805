"""Jobs' marks and runs on every database: who is first gets it, and nobody else."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest

from headrace.control.jobs.plan import MAX_INTERRUPTIONS, begun
from headrace.control.jobs.scheduler import LEASE_S, Planner
from headrace.control.model.job_runs import JobMark, JobRun, RunState
from headrace.control.state import open_store
from headrace.control.state.store import Store
from headrace.core import AlreadyExistsError

MARK = JobMark(job="j", schedule="* * * * * UTC", since=10.0, handled=10.0)


def run(id_: str = "j-1", job: str = "j", moment: float = 60.0, **changes: Any) -> JobRun:  # noqa: ANN401  # any field
    plain = JobRun(
        id=id_, job=job, moment=moment, state=RunState.WAITING, document={"name": job, "n": [1]}
    )
    return msgspec.structs.replace(plain, **changes)


def test_a_run_is_read_as_it_was_stored(store: Store) -> None:
    one = run(began=1.5, message="ü\x00", rows=7, actor="ann", trigger="manual", output="/o")
    store.jobs.add_run.blocking(one)

    stored = msgspec.structs.replace(one, message="ü\ufffd")
    assert store.jobs.run.blocking("j-1") == stored
    assert store.jobs.look.blocking().open == (stored,)
    assert store.jobs.run.blocking("j-2") is None
    with pytest.raises(AlreadyExistsError, match="j-1"):
        store.jobs.add_run.blocking(one)


def test_a_mark_moves_only_from_where_it_was_read(store: Store) -> None:
    assert store.jobs.advance.blocking(MARK, ())
    assert not store.jobs.advance.blocking(MARK, [run()])
    (read,) = store.jobs.look.blocking().marks.values()
    moved = msgspec.structs.replace(read, handled=60.0)

    assert store.jobs.advance.blocking(moved, [run()])
    assert not store.jobs.advance.blocking(moved, [run("j-2")])

    look = store.jobs.look.blocking()
    assert look.marks == {"j": msgspec.structs.replace(moved, revision=2)}
    assert [one.id for one in look.open] == ["j-1"]


def test_a_moment_that_has_a_run_keeps_it(store: Store) -> None:
    store.jobs.add_run.blocking(run(rows=3))

    assert store.jobs.advance.blocking(MARK, [run(rows=0), run("j-2")])

    assert [(one.id, one.rows) for one in store.jobs.look.blocking().open] == [
        ("j-1", 3),
        ("j-2", 0),
    ]


def test_who_took_a_run_keeps_it_until_another_does(store: Store) -> None:
    store.jobs.add_run.blocking(run())
    mine = store.jobs.take.blocking(run(), "me")
    assert mine is not None
    assert store.jobs.take.blocking(run(), "other") is None
    beaten = store.jobs.save.blocking(msgspec.structs.replace(mine, rows=5))
    assert beaten is not None
    assert store.jobs.take.blocking(mine, "other") is None, "it was alive meanwhile"

    others = store.jobs.take.blocking(beaten, "other")

    assert others is not None
    assert (others.owner, others.fence, others.rows) == ("other", 2, 5)
    assert store.jobs.save.blocking(beaten) is None
    assert store.jobs.run.blocking("j-1") == others


def test_a_released_run_is_free_and_one_that_is_over_is_not(store: Store) -> None:
    store.jobs.add_run.blocking(run())
    mine = store.jobs.take.blocking(run(), "me")
    assert mine is not None
    free = store.jobs.save.blocking(mine, release=True)
    assert free is not None
    again = store.jobs.take.blocking(free, "me")
    assert again is not None
    done = store.jobs.save.blocking(
        msgspec.structs.replace(again, state=RunState.SUCCEEDED, ended=9.0)
    )

    assert done is not None
    assert store.jobs.save.blocking(done) is None
    assert store.jobs.look.blocking().open == ()
    assert store.jobs.look.blocking().succeeded == {"j": done} == store.jobs.look.blocking().ended


def test_cancelling_ends_what_nobody_runs_and_asks_the_owner_of_the_rest(store: Store) -> None:
    store.jobs.add_run.blocking(run())
    store.jobs.add_run.blocking(run("j-2"))
    mine = store.jobs.take.blocking(run("j-2"), "me")
    assert mine is not None

    waiting = store.jobs.cancel.blocking("j-1", "ann", 5.0)
    running = store.jobs.cancel.blocking("j-2", "ann", 5.0)
    told = store.jobs.save.blocking(mine)

    assert waiting is not None
    assert (waiting.state, waiting.ended) == (RunState.CANCELLED, 5.0)
    assert running is not None
    assert (running.state, running.cancelled_by) == (RunState.WAITING, "ann")
    assert told is not None
    assert told.cancelled_by == "ann"
    assert store.jobs.cancel.blocking("j-1", "bob", 6.0) == waiting
    assert store.jobs.cancel.blocking("j-3", "ann", 5.0) is None


def test_old_runs_go_but_not_the_newest_success_nor_what_is_open(store: Store) -> None:
    states = [RunState.SUCCEEDED, *[RunState.FAILED] * 3, RunState.WAITING]
    for number, state in enumerate(states):
        store.jobs.add_run.blocking(run(f"j-{number}", moment=60.0 * number, state=state))
    store.jobs.add_run.blocking(run("k-0", "k", state=RunState.FAILED))

    gone = store.jobs.forget.blocking("j", keep=1)

    assert gone == 2
    assert [one.id for one in store.jobs.runs.blocking("j", limit=10)] == ["j-4", "j-3", "j-0"]
    assert [one.id for one in store.jobs.runs.blocking("j", limit=1)] == ["j-4"]
    assert [one.id for one in store.jobs.runs.blocking("k", limit=10)] == ["k-0"]


def test_of_many_who_start_a_moment_or_take_a_run_one_does(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]
    stores[0].jobs.advance.blocking(MARK, ())
    (read,) = stores[0].jobs.look.blocking().marks.values()

    def all_at_once(act: Callable[[int], bool]) -> int:
        with ThreadPoolExecutor(len(stores)) as pool:
            return sum(pool.map(act, range(len(stores))))

    moved = all_at_once(lambda i: stores[i].jobs.advance.blocking(read, [run(rows=i)]))
    taken = all_at_once(
        lambda i: (
            stores[i].jobs.take.blocking(stores[i].jobs.look.blocking().open[0], str(i)) is not None
        )
    )

    assert moved == 1
    assert len(stores[0].jobs.look.blocking().open) == 1
    # Who looked after another had taken it may take it from that one: fences tell them apart.
    assert stores[0].jobs.look.blocking().open[0].fence == taken
    for store in stores:
        store.close()


def test_interruptions_are_counted_by_whoever_takes_the_run_until_it_fails(
    store: Store,
) -> None:
    """Each owner dies without a word, and the next one is of another home."""
    document = {"name": "j", "model": "m", "input": "/i", "output": "/o/{run_id}"}
    store.jobs.add_run.blocking(run(document=document))
    seen = []
    for life in range(MAX_INTERRUPTIONS + 1):
        planner = Planner(store=store, owner=f"home-{life}/1", home=f"home-{life}")
        steps = [
            asyncio.run(planner.step(now=100.0, monotonic=at, own=frozenset()))
            for at in (0.0, LEASE_S)[: life + 1]
        ]
        (taken,) = steps[-1].begun
        saved = store.jobs.save.blocking(begun(taken, now=100.0))
        assert saved is not None
        seen.append((saved.state, saved.interruptions))

    *before, last = seen
    assert before == [(RunState.RUNNING, count) for count in range(MAX_INTERRUPTIONS)]
    assert last == (RunState.FAILED, MAX_INTERRUPTIONS)
    stored = store.jobs.run.blocking("j-1")
    assert stored is not None
    assert "finished no shard" in stored.message
    assert store.jobs.look.blocking().ended == {"j": stored}


def test_progress_lets_a_run_be_interrupted_for_ever(store: Store) -> None:
    document = {"name": "j", "model": "m", "input": "/i", "output": "/o/{run_id}"}
    store.jobs.add_run.blocking(run(document=document))
    for life in range(3 * MAX_INTERRUPTIONS):
        read = store.jobs.run.blocking("j-1")
        assert read is not None
        taken = store.jobs.take.blocking(read, f"owner-{life}")
        assert taken is not None
        under_way = store.jobs.save.blocking(begun(taken, now=100.0))
        assert under_way is not None
        assert store.jobs.save.blocking(msgspec.structs.replace(under_way, shards_done=life // 5))

    stored = store.jobs.run.blocking("j-1")
    assert stored is not None
    assert stored.state is RunState.RUNNING
    assert 1 <= stored.interruptions <= 5
