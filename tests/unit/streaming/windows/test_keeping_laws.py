"""Whatever places, crashes and outages do: each answer's windows are as if nothing had happened."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec
import pytest

from headrace.core import HeadraceError, UnavailableError
from headrace.core.spec.stream_parts import Function, StreamWindowSpec, StreamWindowsSpec
from headrace.streaming.broker import Delivery
from headrace.streaming.in_flight import Outcome, ScoringBatch
from headrace.streaming.metrics import Counters
from headrace.streaming.records import NewRecord, Record
from headrace.streaming.windows.panes import WindowEvent, plan_windows
from headrace.streaming.windows.session import Windows
from headrace.testing.streams import MemoryBroker, TurnedClock
from tests.unit.streaming.windows.parts import Reference, same
from tests.unit.streaming.world import (
    DEAD,
    IN,
    OUT,
    Member,
    World,
    answer,
    broker_with,
    settings,
    where,
    writer,
)

PARTITIONS, RECORDS, STEPS = 2, 120, 500
KINDS = [*["turn"] * 10, "send", "send", "give", "give", "seize", "crash", "away", "back"]
BEGIN_S = 1_700_000_000.0
WINDOWS = StreamWindowsSpec(
    windows=[
        StreamWindowSpec(name="n", size_s=4, slide_s=1, key="k"),
        StreamWindowSpec(name="s", size_s=3, function=Function.SUM, field="v", key="k"),
        StreamWindowSpec(
            name="m", size_s=2.5, slide_s=1.5, function=Function.MAX, field="v", key="k"
        ),
    ],
    time="t",
    lateness_s=2.0,
    checkpoint_s=0.02,
)


@dataclass
class Watcher(Member):
    """Answers with the windows that its records have."""

    def _answer(self, batch: ScoringBatch) -> list[Outcome] | HeadraceError:
        if self.away:
            return UnavailableError("the store is away")
        columns = batch.added.columns
        found: list[Outcome] = []
        for at, record in enumerate(batch.records):
            error = batch.added.errors.get(at)
            if error is not None:
                now_s = self.clock.now()
                found.append(writer().failed(record, error, attempts=1, now_s=now_s))
                continue
            values = [columns[name][at] for name in ("n", "s", "m")]
            header = ("windows", msgspec.json.encode(values))
            found.append(msgspec.structs.replace(answer(record), headers=(header,)))
        return found


def events(random: Random) -> list[tuple[int, dict[str, object]]]:
    """Partitions, and values: time goes on by fits and starts, and some come late."""
    found, at_s = [], BEGIN_S
    for number in range(RECORDS):
        at_s += random.choice([0.0, 0.1, 0.3, 1.0])
        late_s = random.choice([0.0, 0.0, 0.5, 1.9, 6.0])
        row = {"t": at_s - late_s, "k": random.choice("abc"), "v": random.randint(-99, 99) / 7}
        found.append((number % PARTITIONS, row))
    return found


def decode(answer: Record) -> list[float | None]:
    """The windows' values that an answer was given; NaN is null in JSON."""
    return msgspec.json.decode(dict(answer.headers)["windows"], type=list[float | None])


def written_s(rows: list[tuple[int, dict[str, object]]]) -> float:
    """When the last of them was: at the latest time that there had been."""
    return max(float(str(row["t"])) for _, row in rows)


def expected(rows: list[tuple[int, dict[str, object]]]) -> dict[tuple[str, int], object]:
    """By place and offset."""
    plan = plan_windows(WINDOWS)
    found: dict[tuple[str, int], object] = {}
    for partition in range(PARTITIONS):
        reference = Reference(WINDOWS, plan)
        mine = [row for at, row in rows if at == partition]
        for offset, row in enumerate(mine):
            at_s, value = row["t"], row["v"]
            assert isinstance(at_s, float)
            assert isinstance(value, float)
            event = WindowEvent(round(at_s * 1e6), (msgspec.json.encode(row["k"]),), (value,))
            found[f"{IN}/{partition}", offset] = reference.value(event)
    return found


@contextmanager
def members(
    folder: Path, delivery: Delivery, random: Random, *, shares: bool
) -> Iterator[tuple[MemoryBroker, list[Watcher]]]:
    """Two, which share a machine's folder or have each their own."""
    clock = TurnedClock()
    broker = broker_with(clock, partitions=PARTITIONS, safe_after_s=0.01, spreads=False)

    def windows(name: str, counters: Counters) -> Windows:
        state = str(folder if shares else folder / name)
        told = settings(member=name, windows=msgspec.structs.replace(WINDOWS, state=state))
        return Windows(told, broker, counters.windows, clock=clock)

    found = [
        Watcher(
            name=name,
            broker=broker,
            delivery=delivery,
            clock=clock,
            seconds=lambda _: random.choice([0.0, 0.01, 0.05]),
            make_windows=lambda counters, name=name: windows(name, counters),  # type: ignore[misc]  # the default binds it
        )
        for name in ("a", "b")
    ]
    try:
        yield broker, found
    finally:
        for member in found:
            if member.poll_loop.windows is not None:
                member.poll_loop.windows.close()


def play(world: World, random: Random) -> None:
    for _ in range(STEPS):
        kind = random.choice(KINDS)
        which = random.randint(1, 6) if kind == "send" else random.randrange(2 * PARTITIONS)
        world.do(kind, which, random.randrange(4))
        world.broker.clock.turn(random.choice([0.0, 0.005, 0.05]))
    world.settle()


@pytest.mark.slow  # hundreds of turns, each with a file
@pytest.mark.parametrize("shares", [True, False], ids=["one machine", "two machines"])
@pytest.mark.parametrize("delivery", Delivery)
@pytest.mark.parametrize("seed", range(3))
def test_answers_have_the_windows_of_an_undisturbed_run(
    tmp_path: Path, delivery: Delivery, seed: int, *, shares: bool
) -> None:
    random = Random(seed)  # noqa: S311  # no secret
    rows = events(random)
    # Written when they happened, so that a state can be made again of what was written since.
    left = [
        NewRecord(
            topic=IN,
            key=b"k",
            partition=at,
            value=msgspec.json.encode(row),
            timestamp_s=written_s(rows[: number + 1]),
        )
        for number, (at, row) in enumerate(rows)
    ]
    with members(tmp_path, delivery, random, shares=shares) as (broker, two):
        play(World(broker, two, left), random)
        counted = [member.counters.windows for member in two]

    wanted = expected(rows)
    answers = [
        (where(one), [math.nan if value is None else value for value in decode(one)])
        for one in broker.all(OUT)
    ]
    assert {at for at, _ in answers} == wanted.keys()
    assert not broker.all(DEAD)
    for at, values in answers:
        assert same(values, wanted[at]), (at, values, wanted[at])  # type: ignore[arg-type]  # numbers
    if not shares:
        assert sum(one.restored_records for one in counted) > 0
    if delivery is Delivery.EXACTLY_ONCE:
        assert len(answers) == len({at for at, _ in answers})
