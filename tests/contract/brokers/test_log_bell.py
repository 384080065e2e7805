"""Who waits for a log is rung, wherever it lies, and whoever died beside it."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import InvalidArgumentError
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.brokers.log.file import ChangeNotifier
from headrace.streaming.records import TopicPartition
from tests.contract.brokers.rig import Listener, Rig, joined, numbered, numbers, take

LONG_S = 60.0


@contextlib.contextmanager
def bells(folder: Path, *names: str) -> Iterator[list[ChangeNotifier]]:
    made = [ChangeNotifier(folder) for _ in names]
    try:
        for bell, name in zip(made, names, strict=True):
            assert bell.listen(name)
        yield made
    finally:
        for bell in made:
            bell.close()
            bell.close()


def waited_s(bell: ChangeNotifier, most_s: float) -> float:
    began = time.monotonic()
    bell.wait(most_s)
    return time.monotonic() - began


def test_a_ring_wakes_the_others_once(tmp_path: Path) -> None:
    with bells(tmp_path, "one", "two", "three") as (one, two, three):
        for _ in range(100):  # more than a socket keeps
            one.notify()

        assert waited_s(two, LONG_S) < LONG_S / 2
        assert waited_s(three, LONG_S) < LONG_S / 2
        assert waited_s(two, 0.05) >= 0.05
        assert waited_s(one, 0.05) >= 0.05


def test_it_rings_however_long_the_path_of_the_log_is(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    with bells(folder, "one", "two") as (one, two):
        one.notify()

        assert waited_s(two, LONG_S) < LONG_S / 2


def test_who_has_died_is_forgotten(tmp_path: Path) -> None:
    with bells(tmp_path, "one", "dead") as (one, dead):
        dead._socket.close()  # as when its process is killed
        one.notify()

        assert [path.name for path in (tmp_path / "waiting").iterdir()] == ["one"]
    assert list((tmp_path / "waiting").iterdir()) == []


def test_who_cannot_be_rung_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChangeNotifier, "listen", lambda *_: False)  # as on a disk without sockets
    log = LogBroker(tmp_path / "log")
    log.create_topic("t")
    rig = Rig(url="unused:", home=tmp_path)
    with joined(log, rig.membership("t")) as session:
        assert session.poll(1, 0.1) == []
        log.send(numbered("t", [1]))
        began = time.monotonic()

        assert numbers(take(session, 1, within_s=LONG_S)) == [1]
        assert time.monotonic() - began < LONG_S / 2
    log.close()


def test_a_state_that_names_a_place_which_was_not_gained_is_refused(tmp_path: Path) -> None:
    class Strange(Listener):
        def on_assigned(self, partitions: object) -> dict[TopicPartition, int]:  # noqa: ARG002  # whatever comes
            return {TopicPartition("elsewhere", 3): 0}

    log = LogBroker(tmp_path / "log")
    log.create_topic("t")
    rig = Rig(url="unused:", home=tmp_path)
    with (
        joined(log, rig.membership("t"), Strange()) as session,
        pytest.raises(InvalidArgumentError, match="elsewhere"),
    ):
        session.poll(1, 0)
    log.close()
