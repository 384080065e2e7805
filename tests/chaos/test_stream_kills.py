"""Streams over each broker while workers are killed, frozen and restarted, and brokers killed.

Kafka has three brokers, and each record three replicas; Pulsar is one process. Brokers that
Headrace's own clients fill keep running, and their workers are killed `CHAOS_KILLS` times. A table
of what was counted is printed, and is in `dist/stream-kills.md`. By default it is a short run of
Kafka and of Pulsar; `CHAOS_BROKER_KILLS=30 CHAOS_WORKER_KILLS=50 CHAOS_FREEZES=20
CHAOS_RESTARTS=20` is the full one of Kafka, 5, 20, 5, 5 that of Pulsar. `CHAOS_RATE` is in records
per second, `CHAOS_PAUSE_S` the pause before each kill, beside some seconds by chance.
"""

import os
import random
import shutil
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from headrace.streaming.broker import Delivery, GroupProtocol
from headrace.streaming.settings import StreamStatus, WorkerSettings
from tests.brokers.java import ServerProcess
from tests.brokers.kafka import SHORT_SESSIONS, running_kafka
from tests.brokers.pulsar import running_pulsar
from tests.chaos.clients import (
    DEAD,
    coordinator_of,
    counted_by_apache,
    kafka_dead_letters,
    over_any,
    over_kafka,
    over_pulsar,
    pulsar_dead_letters,
)
from tests.chaos.ledger import Counts, Ledger
from tests.contract.brokers.rig import everything
from tests.e2e.streaming import workers
from tests.e2e.streaming.servers import site

pytestmark = pytest.mark.e2e


@dataclass(frozen=True, kw_only=True)
class Events:
    """How often something happens, and the seconds of the pause before it, by chance."""

    broker_kills: int = int(os.environ.get("CHAOS_BROKER_KILLS", "1"))
    kills: int = int(os.environ.get("CHAOS_WORKER_KILLS", "3"))
    freezes: int = int(os.environ.get("CHAOS_FREEZES", "1"))
    restarts: int = int(os.environ.get("CHAOS_RESTARTS", "1"))
    pause_s: tuple[float, float] = (1.0, 4.0)


OF_CLUSTERS: Final = Events()
OF_OTHERS: Final = Events(
    broker_kills=0, kills=int(os.environ.get("CHAOS_KILLS", "50")), pause_s=(0.5, 2.0)
)
RATE: Final = float(os.environ.get("CHAOS_RATE", "500"))
PAUSE_S: Final = float(os.environ.get("CHAOS_PAUSE_S", "0"))
MEMBERS: Final = ("one", "two", "three")
PARTITIONS: Final = 6
LONGEST_STILL_S: Final = 30.0
BACK_WITHIN_S: Final = 300.0
DRAINED_WITHIN_S: Final = 120.0
ENDS_WITHIN_S: Final = 45.0
SETTLED_S: Final = 3.0
RESULTS: Final = Path("dist/stream-kills.md")
COLUMNS: Final = (
    "broker", "delivery", "broker kills", "kills", "freezes", "rolling restarts", "records",
    "answers", "lost", "twice", "out of order", "dead letters", "longest stand-still, s",
    "since, s", "exits by themselves",
)  # fmt: skip


@dataclass
class Fleet:
    """Workers of one stream; each that ends is started again a second later."""

    folder: Path
    told: list[WorkerSettings]
    exits: Counter[int] = field(default_factory=Counter)
    """Ends that nobody asked for, by status."""
    running: dict[str, workers.Worker] = field(default_factory=dict)
    asked: set[int] = field(default_factory=set)
    over: threading.Event = field(default_factory=threading.Event)

    def tend(self, told: WorkerSettings) -> None:
        while not self.over.is_set():
            worker = workers.start(self.folder, told)
            self.running[told.member] = worker
            status = worker.process.wait()
            worker.client.close()
            if worker.process.pid not in self.asked:
                self.exits[status] += 1
            self.over.wait(1.0)

    def end(self, member: str, how: signal.Signals) -> None:
        process = self.running[member].process
        self.asked.add(process.pid)
        process.send_signal(how)
        process.wait(ENDS_WITHIN_S)

    def restart(self) -> None:
        """End one after the other in order; the next when the one before is back."""
        for member in MEMBERS:
            before = self.running[member]
            self.end(member, signal.SIGTERM)
            while self.running[member] is before:
                time.sleep(0.1)
            time.sleep(3.0)

    def statuses(self) -> list[StreamStatus]:
        return [worker.status() for worker in self.running.values() if worker.listens()]

    def freeze(self, member: str, for_s: float) -> None:
        process = self.running[member].process
        process.send_signal(signal.SIGSTOP)
        time.sleep(for_s)
        process.send_signal(signal.SIGCONT)


@contextmanager
def fleet(
    folder: Path, url: str, delivery: Delivery, protocol: GroupProtocol = GroupProtocol.AUTO
) -> Iterator[Fleet]:
    model = workers.double(folder)
    told = [
        workers.settings(
            folder, model, broker=url, member=member, delivery=delivery, model_threads=1,
            session_timeout_s=6.0, max_batch_size=64, group_protocol=protocol,
        )
        for member in MEMBERS
    ]  # fmt: skip
    started = Fleet(folder, told)
    threads = [threading.Thread(target=started.tend, args=(one,), daemon=True) for one in told]
    for thread in threads:
        thread.start()
    try:
        yield started
    finally:
        started.over.set()
        while any(thread.is_alive() for thread in threads):
            for worker in list(started.running.values()):
                worker.process.kill()
            time.sleep(0.1)


def kill_brokers(
    kills: int,
    choose: Callable[[random.Random], ServerProcess],
    is_back: Callable[[], None],
    say: Callable[[str], None],
) -> None:
    chance = random.Random(kills)  # noqa: S311  # moments, no secrets
    for _ in range(kills):
        time.sleep(PAUSE_S + chance.uniform(2, 5))
        broker = choose(chance)
        say(f"kill {broker.log.stem}")
        broker.kill()
        time.sleep(chance.uniform(0, 4))
        broker.begin()
        while not broker.is_ready():
            # Kafka ends itself if it starts during the election of a controller.
            if broker.process is not None and broker.process.poll() is not None:
                say(f"{broker.log.stem} has ended, and starts again")
                broker.begin()
            time.sleep(0.5)
        is_back()
        say(f"{broker.log.stem} is back")


def disturb(
    ledger: Ledger,
    running: Fleet,
    what: Events,
    choose: Callable[[random.Random], ServerProcess],
    is_back: Callable[[], None] = lambda: None,
) -> None:
    """Kill, freeze and restart, workers beside brokers, until all is done and answered."""

    def say(event: str) -> None:
        print(f"{time.monotonic() - ledger.opened_at:.1f} s: {event}")  # noqa: T201  # for the figures

    until(lambda: bool(ledger.answers), 60.0)
    chance = random.Random(what.kills)  # noqa: S311  # moments, no secrets
    events = ["kill"] * what.kills + ["freeze"] * what.freezes + ["restart"] * what.restarts
    chance.shuffle(events)
    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill_brokers, what.broker_kills, choose, is_back, say)
        for event in events:
            time.sleep(PAUSE_S + chance.uniform(*what.pause_s))
            member = chance.choice(MEMBERS)
            say(f"{event} {member}" if event != "restart" else event)
            if event == "kill":
                running.end(member, signal.SIGKILL)
            elif event == "freeze":
                running.freeze(member, chance.uniform(1, 9))
            else:
                running.restart()
        killing.result()
    ledger.stopped.set()
    until(lambda: ledger.flushed.is_set() and ledger.left() == 0, DRAINED_WITHIN_S)
    if left := ledger.left():
        say(f"{left} records have no answer: {running.statuses()}")
    running.over.set()
    for member in MEMBERS:
        running.end(member, signal.SIGTERM)
    until(
        lambda: not ledger.answers or time.monotonic() - ledger.answers[-1][1] > SETTLED_S,
        DRAINED_WITHIN_S,
    )


def until(holds: Callable[[], bool], within_s: float) -> None:
    """Wait until that holds, or the time is over: the count tells."""
    deadline = time.monotonic() + within_s
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.5)


@pytest.fixture(scope="module")
def table() -> list[tuple[object, ...]]:
    return []


@pytest.fixture
def folder() -> Iterator[Path]:
    # Short, for Unix sockets; what failed stays to be looked at.
    name = Path(tempfile.mkdtemp(prefix="hr-kills-"))
    yield name
    if not (name / "failed").exists():
        shutil.rmtree(name)


def note(
    table: list[tuple[object, ...]], broker: str, delivery: Delivery, what: Events,
    counts: Counts, *, dead: int, exits: Counter[int],
) -> None:  # fmt: skip
    """Add a line to the table, in its file too."""
    events = (what.broker_kills, what.kills, what.freezes, what.restarts)
    counted = (counts.written, counts.answers, counts.lost, counts.twice, counts.disordered, dead)
    still = (f"{counts.longest_still_s:.1f}", f"{counts.still_at_s:.0f}")
    ended = ", ".join(f"{times} x {status}" for status, times in sorted(exits.items())) or "-"
    table.append((broker, delivery, *events, *counted, *still, ended))
    lines = [COLUMNS, ["---"] * len(COLUMNS), *table]
    text = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(text)
    print(f"\n{text}")  # noqa: T201  # the figures


@pytest.mark.jvm
@pytest.mark.parametrize("protocol", [GroupProtocol.CLASSIC, GroupProtocol.CONSUMER])
@pytest.mark.parametrize("delivery", Delivery)
def test_a_stream_over_kafka_answers_every_record_in_order(
    folder: Path, table: list[tuple[object, ...]], delivery: Delivery, protocol: GroupProtocol
) -> None:
    ledger = Ledger()
    (folder / "failed").touch()
    with running_kafka(folder / "kafka", brokers=3, options=SHORT_SESSIONS) as cluster:
        url = f"kafka://{cluster.bootstrap}"

        def choose(chance: random.Random) -> ServerProcess:
            number = coordinator_of(cluster, workers.GROUP) if chance.random() < 0.5 else None
            return chance.choice(cluster.brokers) if number is None else cluster.brokers[number]

        def is_back() -> None:
            cluster.wait_until_in_sync(within_s=BACK_WITHIN_S)

        with (
            over_kafka(cluster, ledger, partitions=PARTITIONS, rate=RATE),
            fleet(folder, url, delivery, protocol) as running,
        ):
            disturb(ledger, running, OF_CLUSTERS, choose, is_back)
        counts = ledger.counts(time.monotonic())
        dead = kafka_dead_letters(cluster, PARTITIONS)
        by_apache = counted_by_apache(cluster)
    note(table, f"Kafka, {protocol}", delivery, OF_CLUSTERS, counts, dead=dead, exits=running.exits)

    assert by_apache == (counts.answers, counts.answers - counts.twice)
    assert (counts.lost, counts.disordered, dead) == (0, 0, 0)
    if delivery is Delivery.EXACTLY_ONCE:
        assert counts.twice == 0
    assert counts.longest_still_s <= LONGEST_STILL_S
    (folder / "failed").unlink()


@pytest.mark.jvm
@pytest.mark.parametrize("partitions", [1, 4])
@pytest.mark.parametrize("subscription", ["shared", "failover", "key_shared"])
def test_a_stream_over_pulsar_answers_every_record(
    folder: Path, table: list[tuple[object, ...]], subscription: str, partitions: int
) -> None:
    ledger = Ledger()
    (folder / "failed").touch()
    with running_pulsar(folder / "pulsar") as server:
        url = f"{server.url}?admin={server.admin}&subscription={subscription}"
        with (
            over_pulsar(server, ledger, partitions=partitions, rate=RATE),
            fleet(folder, url, Delivery.AT_LEAST_ONCE) as running,
        ):
            disturb(ledger, running, OF_CLUSTERS, lambda _: server)
        counts = ledger.counts(time.monotonic())
        dead = pulsar_dead_letters(server)
    name = f"Pulsar, {subscription}, {partitions} partitions"
    note(table, name, Delivery.AT_LEAST_ONCE, OF_CLUSTERS, counts, dead=dead, exits=running.exits)

    assert (counts.lost, dead) == (0, 0)
    if subscription != "shared":
        assert counts.disordered == 0
    (folder / "failed").unlink()


@pytest.mark.parametrize("name", ["log", "nats", "redis"])
@pytest.mark.parametrize("delivery", Delivery)
def test_a_stream_over_each_other_broker_answers_every_record(
    table: list[tuple[object, ...]], name: str, delivery: Delivery
) -> None:
    ledger = Ledger()
    with site(name) as (where, broker):
        with (
            over_any(where.open, ledger, rate=4 * RATE),
            fleet(where.home, where.url, delivery) as running,
        ):
            disturb(ledger, running, OF_OTHERS, lambda _: pytest.fail("no broker is killed"))
        counts = ledger.counts(time.monotonic())
        dead = len(everything(broker, DEAD))
        has_partitions = broker.abilities.partitions
    note(table, name, delivery, OF_OTHERS, counts, dead=dead, exits=running.exits)

    assert (counts.lost, dead) == (0, 0)
    if delivery is Delivery.EXACTLY_ONCE:
        assert counts.twice == 0
    if has_partitions:
        assert counts.disordered == 0
