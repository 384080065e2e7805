"""Two who write at once lose nothing, and one who is killed leaves what was before."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from headrace.control.model.records import Assignment, Feedback
from headrace.control.state import open_store
from headrace.control.state.store import Store
from headrace.core import ConflictError
from tests.contract.states import endpoint, event, rollout, state

ROOT = Path(__file__).parents[2]
SAVES = 15
WAIT_S = 60.0


@contextmanager
def running(function: Callable[..., None], *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that calls a function of this module with strings."""
    script = f"import sys; from {__name__} import *; {function.__name__}(*sys.argv[1:])"
    process = subprocess.Popen(  # noqa: S603  # ours
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()


def save_many(url: str, name: str) -> None:
    """Change one endpoint again and again, beginning anew whenever somebody else was first."""
    store = open_store(url)
    print("open", flush=True)  # noqa: T201  # the parent reads it
    sys.stdin.readline()
    saved: list[int] = []
    conflicts = 0
    while len(saved) < SAVES:
        before = store.load.blocking()
        mine = before.endpoint(name)
        changed = endpoint(name, 1 if mine is None else mine.generation + 1)
        others = tuple(e for e in before.endpoints if e.name != name)
        after = state(before.generation + 1, *others, changed)
        try:
            store.save.blocking(after, timestamp=1.0, reason="applied", actor=name)
        except ConflictError:
            conflicts += 1
        else:
            saved.append(after.generation)
            store.add_events.blocking([event(name, str(after.generation))])
    store.close()
    print(json.dumps({"saved": saved, "conflicts": conflicts}))  # noqa: T201  # the parent reads it


@pytest.mark.e2e
def test_two_processes_never_lose_an_update(url: str, store: Store) -> None:
    with running(save_many, url, "a") as one, running(save_many, url, "b") as two:
        for process in (one, two):
            assert process.stdout is not None
            assert process.stdout.readline() == "open\n"
        told = [
            json.loads(process.communicate("go\n", timeout=WAIT_S)[0].splitlines()[-1])
            for process in (one, two)
        ]

    saved = [generation for one_told in told for generation in one_told["saved"]]
    assert sorted(saved) == list(range(1, 2 * SAVES + 1))
    assert store.load.blocking().generation == 2 * SAVES
    for name in ("a", "b"):
        generations = [entry.generation for entry in store.history.blocking(name)]
        assert generations == list(range(SAVES, 0, -1))
    assert sorted(int(e.message) for e in store.events.blocking()) == sorted(saved)
    assert [e.id for e in store.events.blocking()] == list(range(1, 2 * SAVES + 1))


def test_of_many_threads_one_gets_each_revision_of_a_rollout(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]
    first = stores[0].save_rollout.blocking(rollout())

    def replace(number: int) -> int:
        try:
            changed = msgspec.structs.replace(first, actor=str(number))
            stores[number].save_rollout.blocking(changed, events=[event(message=str(number))])
        except ConflictError:
            return 0
        return 1

    with ThreadPoolExecutor(len(stores)) as pool:
        won = list(pool.map(replace, range(len(stores))))
    winner = str(won.index(1))
    (stored,) = stores[0].rollouts.blocking()

    assert sum(won) == 1
    assert (stored.actor, stored.revision) == (winner, 2)
    assert [e.message for e in stores[0].events.blocking()] == [winner]
    for store in stores:
        store.close()


def test_of_many_threads_one_begins_a_rollout(url: str) -> None:
    stores = [open_store(url) for _ in range(4)]

    def begin(store: Store) -> int:
        try:
            store.save_rollout.blocking(rollout())
        except ConflictError:
            return 0
        return 1

    with ThreadPoolExecutor(len(stores)) as pool:
        won = list(pool.map(begin, stores))

    assert sum(won) == 1
    assert len(stores[0].rollouts.blocking()) == 1
    for store in stores:
        store.close()


def test_who_follows_events_misses_none_while_others_write(url: str) -> None:
    # SQLite wakes those who wait in no order: somebody may wait for long while others write on.
    writers = [open_store(url, lock_timeout_s=WAIT_S) for _ in range(3)]
    reader = open_store(url)
    done = threading.Event()
    seen: list[int] = []

    def write(number: int) -> None:
        for i in range(20):
            writers[number].add_events.blocking([event(message=f"{number} {i}")] * (1 + i % 3))

    def follow() -> None:
        is_last = False
        while not is_last:
            is_last = done.is_set()
            found = reader.events.blocking(after=seen[-1] if seen else 0)
            seen.extend(e.id for e in found)

    with ThreadPoolExecutor(len(writers) + 1) as pool:
        following = pool.submit(follow)
        list(pool.map(write, range(len(writers))))
        done.set()
        following.result(timeout=WAIT_S)

    assert seen == list(range(1, len(seen) + 1))
    assert len(seen) == len(writers) * sum(1 + i % 3 for i in range(20))
    for store in (*writers, reader):
        store.close()


def test_feedback_that_crosses_its_assignment_is_counted(url: str) -> None:
    stores = [open_store(url, lock_timeout_s=WAIT_S) for _ in range(4)]
    ids = [f"q{i}" for i in range(40)]

    def assign(store_ids: "tuple[int, list[str]]") -> None:
        number, mine = store_ids
        for i in range(0, len(mine), 5):
            some = [
                Assignment(request_id=q, rollout="r1", arm="2", unit="u", at=1.0)
                for q in mine[i : i + 5]
            ]
            stores[number].add_assignments.blocking(some)

    def reward(number: int) -> list[str]:
        # Each in an order of its own, all at once: whoever wrote in it could wait for ever.
        way = -1 if number else 1
        rewards = [Feedback(request_id=q, reward=0.5, at=2.0) for q in ids[::way]]
        return stores[number].add_feedback.blocking(*rewards)[::way]

    with ThreadPoolExecutor(len(stores)) as pool:
        rewarding = [pool.submit(reward, number) for number in (0, 1)]
        # The other way round, and both: whoever came in another order could wait for ever.
        list(pool.map(assign, [(2, ids), (3, ids[::-1])]))
        answers = [future.result(timeout=WAIT_S) for future in rewarding]
    (total,) = stores[0].rewards.blocking("r1")

    assert (total.count, total.total) == (len(ids), 0.5 * len(ids))
    firsts = [pair.count("duplicate") for pair in zip(*answers, strict=True)]
    assert firsts == [1] * len(ids)
    for store in stores:
        store.close()


def open_and_save(url: str) -> None:
    sys.stdin.readline()
    store = open_store(url)
    try:
        store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    except ConflictError:
        print("late")  # noqa: T201  # the parent reads it
    else:
        print("first")  # noqa: T201  # the parent reads it
    store.close()


@pytest.mark.e2e
def test_control_planes_that_start_at_once_make_one_schema(url: str) -> None:
    with (
        running(open_and_save, url) as one,
        running(open_and_save, url) as two,
        running(open_and_save, url) as three,
    ):
        processes = (one, two, three)
        time.sleep(0.5)  # they import first, so that they meet at the database
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = sorted(process.communicate(timeout=WAIT_S)[0].strip() for process in processes)

    assert told == ["first", "late", "late"]
    assert [process.returncode for process in processes] == [0, 0, 0]


def save_and_die(url: str) -> None:
    """Be killed when all is written and nothing committed."""
    from sqlalchemy import Engine  # noqa: PLC0415  # the parent has another `event`
    from sqlalchemy import event as hooks  # noqa: PLC0415

    store = open_store(url)

    def die(_connection: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    hooks.listen(Engine, "commit", die)
    store.save.blocking(state(2, endpoint("a", 2), endpoint("b")), timestamp=2.0, reason="applied")


@pytest.mark.e2e
def test_who_is_killed_in_the_middle_of_a_save_leaves_the_old_state(url: str, store: Store) -> None:
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    with running(save_and_die, url) as process:
        assert process.wait(timeout=WAIT_S) == -signal.SIGKILL

    assert store.load.blocking() == state(1, endpoint("a"))
    assert store.last_generations.blocking() == {"a": 1}
    store.save.blocking(state(2, endpoint("c")), timestamp=3.0, reason="applied")
    assert store.load.blocking() == state(2, endpoint("c"))


def save_for_ever(url: str) -> None:
    store = open_store(url)
    while True:
        number = store.load.blocking().generation + 1
        store.save.blocking(state(number, endpoint("a", number)), timestamp=1.0, reason="applied")
        print(number, flush=True)  # noqa: T201  # the parent reads it


@pytest.mark.e2e
def test_who_is_killed_at_any_moment_loses_nothing_that_was_answered(
    url: str, store: Store
) -> None:
    for round_ in range(3):
        with running(save_for_ever, url) as process:
            assert process.stdout is not None
            for _ in range(3 + round_):
                answered = int(process.stdout.readline())
            time.sleep(0.003 * round_)
            process.kill()
            process.wait()
            rest = process.stdout.read().split()
        answered = int(rest[-1]) if rest else answered
        found = store.load.blocking()

        assert found == state(found.generation, endpoint("a", found.generation))
        assert found.generation in {answered, answered + 1}
        newest = store.history.blocking("a", limit=1)[0]
        assert newest.generation == found.generation
