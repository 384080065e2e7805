"""What happens if others push, remove or clean up between any two requests of a push or a `gc`?"""

import itertools
import threading
from pathlib import Path

import pytest

from headrace.registry.shared import GRACE_S
from tests.unit.registry.memory_bucket import InterruptedBucket
from tests.unit.registry.test_shared import Hosts


@pytest.fixture
def hosts(tmp_path: Path) -> Hosts:
    return Hosts(tmp_path)


def orphaned(hosts: Hosts) -> str:
    """Content that nobody refers to any more, old enough to go."""
    registry = hosts.registry("cleaner")
    version = registry.push("m", hosts.tree("a"))
    registry.remove("m", "1")
    hosts.clock.seconds += GRACE_S + 1
    return version.digest


@pytest.mark.parametrize("at", range(1, 16))
def test_a_push_at_any_point_of_a_gc_loses_nothing(hosts: Hosts, at: int) -> None:
    orphaned(hosts)

    def push() -> None:
        hosts.registry("pusher").push("m", hosts.tree("a"))

    bucket = InterruptedBucket(hosts.bucket, at, push)
    hosts.registry("cleaner", bucket).gc()
    if bucket.requests < at:
        push()

    assert hosts.text("m:2") == "a"


def prepared(hosts: Hosts, content: str) -> None:
    """A store in which "a" is old and unused, or deleted already."""
    orphaned(hosts)
    if content == "deleted":
        hosts.registry("cleaner").gc()


STATES = {"old": "a", "deleted": "a", "new": "b"}


@pytest.mark.parametrize("stalled_s", [0.0, GRACE_S + 60])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("at", range(1, 22))
def test_a_gc_at_any_point_of_a_push_loses_nothing(
    hosts: Hosts, at: int, stalled_s: float, state: str
) -> None:
    prepared(hosts, state)

    def clean() -> None:
        hosts.clock.seconds += stalled_s
        hosts.registry("cleaner").gc()

    bucket = InterruptedBucket(hosts.bucket, at, clean)
    pushed = hosts.registry("pusher", bucket).push("m", hosts.tree(STATES[state]))

    assert pushed.reference == "m:2"
    hosts.clock.seconds += GRACE_S + 60
    hosts.registry("cleaner").gc()
    assert hosts.text("m:2") == STATES[state]


@pytest.mark.slow
@pytest.mark.parametrize("state", STATES)
def test_a_push_that_was_stopped_for_a_day_while_a_gc_runs_loses_nothing(
    tmp_path: Path, state: str
) -> None:
    """The push stops before a request, a gc begins and stops before one, the push ends, the gc."""
    for at, gc_at in itertools.product(range(5, 16), range(1, 9)):
        place = tmp_path / f"{at}-{gc_at}"
        place.mkdir()
        hosts = Hosts(place)
        prepared(hosts, state)
        reached, goes_on = threading.Event(), threading.Event()

        def stop(reached: threading.Event = reached, on: threading.Event = goes_on) -> None:
            reached.set()
            on.wait(10)

        gc_bucket = InterruptedBucket(hosts.bucket, gc_at, stop)

        def clean(hosts: Hosts = hosts, bucket: InterruptedBucket = gc_bucket) -> None:
            hosts.registry("cleaner", bucket).gc()

        cleaner = threading.Thread(target=clean)

        def begin(
            hosts: Hosts = hosts,
            cleaner: threading.Thread = cleaner,
            reached: threading.Event = reached,
        ) -> None:
            hosts.clock.seconds += GRACE_S + 60
            cleaner.start()
            while cleaner.is_alive() and not reached.wait(0.001):
                pass

        bucket = InterruptedBucket(hosts.bucket, at, begin)
        try:
            pushed = hosts.registry("pusher", bucket).push("m", hosts.tree(STATES[state]))
        finally:
            goes_on.set()
            if cleaner.ident is not None:
                cleaner.join(10)

        where = f"stopped before {at}, gc before {gc_at}"
        assert pushed.reference == "m:2", where
        assert hosts.text("m:2") == STATES[state], where


@pytest.mark.parametrize("at", range(1, 22))
def test_another_push_at_any_point_of_a_push_gets_another_number(hosts: Hosts, at: int) -> None:
    def push() -> None:
        hosts.registry("two").push("m", hosts.file("b"))

    bucket = InterruptedBucket(hosts.bucket, at, push)
    hosts.registry("one", bucket).push("m", hosts.file("a"))
    if bucket.requests < at:
        push()

    reader = hosts.registry("reader")
    versions = reader.list("m")
    assert [version.version for version in versions] == ["1", "2"]
    assert {reader.path(version).read_text() for version in versions} == {"a", "b"}


@pytest.mark.parametrize("at", range(1, 22))
def test_the_same_push_at_any_point_of_a_push_is_the_same_version(hosts: Hosts, at: int) -> None:
    def push() -> None:
        hosts.registry("two").push("m", hosts.file("a"))

    bucket = InterruptedBucket(hosts.bucket, at, push)
    hosts.registry("one", bucket).push("m", hosts.file("a"))

    reader = hosts.registry("reader")
    assert [version.version for version in reader.list("m")] == ["1"]
    assert reader.path(reader.get("m")).read_text() == "a"


def test_removing_at_any_point_of_a_push_gives_no_number_twice(hosts: Hosts) -> None:
    for at in range(1, 22):
        name = f"m{at}"
        hosts.registry("two").push(name, hosts.file("a"))

        def push_and_remove(name: str = name) -> None:
            registry = hosts.registry("two")
            registry.remove(name, registry.push(name, hosts.file("b")).version)

        bucket = InterruptedBucket(hosts.bucket, at, push_and_remove)
        pushed = hosts.registry("one", bucket).push(name, hosts.file("c"))

        numbers = [v.version for v in hosts.registry("reader").list(name)]
        assert numbers == ["1", pushed.version]
