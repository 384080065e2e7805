"""Whatever polls, completions, rebalances, failures and crashes come in which order: laws hold."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.broker import Delivery
from headrace.streaming.records import TopicPartition
from headrace.testing.streams import MemoryBroker, TurnedClock
from tests.unit.streaming.world import DEAD, IN, OUT, Member, World, broker_with, inputs, where

PARTITIONS = 3
RECORDS = 90

KINDS = (*["turn"] * 12, "send", "give", "give", "seize", "seize", "crash", "refuse")
OUTAGES = ("away", "back", "back", "broker away", "broker back", "broker back")
Step = tuple[str, int, float]


def script_of(seed: int, steps: int) -> list[Step]:
    """What happens: long scripts find what short ones that chance upon it do not."""
    random = Random(seed)  # noqa: S311  # no secret
    kinds = random.choices(KINDS + OUTAGES, k=steps)
    return [
        (
            kind,
            random.randint(1, 12) if kind == "send" else random.randrange(2 * PARTITIONS),
            random.randrange(8) if kind == "crash" else random.uniform(0, 0.1),
        )
        for kind in kinds
    ]


def world_of(delivery: Delivery, durations: list[float], poison: frozenset[int]) -> World:
    clock = TurnedClock()
    broker = broker_with(clock, partitions=PARTITIONS, safe_after_s=0.01, spreads=False)
    at = iter(range(1 << 30))
    members = [
        Member(
            name=name,
            broker=broker,
            delivery=delivery,
            clock=clock,
            seconds=lambda _: durations[next(at) % len(durations)],
        )
        for name in ("a", "b")
    ]
    return World(broker, members, inputs(RECORDS, partitions=PARTITIONS, poison=poison))


def play(world: World, script: list[Step]) -> None:
    """From a start at which there is more than the model can take at once."""
    world.do("send", RECORDS // 2, 0)
    for which in (0, 2, 5):
        world.do("give", which, 0)
    for what, which, amount in script:
        world.broker.clock.turn(amount if what == "turn" else 0.0)
        world.do(what, which, amount)
    world.settle()


def results(broker: MemoryBroker) -> dict[str, list[int]]:
    """The offsets that were answered or dead-lettered, by place, in the order of the log."""
    found: dict[str, list[int]] = {f"{IN}/{number}": [] for number in range(PARTITIONS)}
    for topic in (OUT, DEAD):
        for record in broker.all(topic):
            partition, offset = where(record)
            found[partition].append(offset)
    return found


scripts = st.builds(script_of, st.integers(0, 1 << 32), st.integers(0, 120))
durations = st.lists(st.floats(0, 0.7), min_size=1, max_size=5)
poisons = st.frozensets(st.integers(0, RECORDS - 1), max_size=4)


@pytest.mark.slow
@pytest.mark.parametrize("delivery", Delivery)
@given(script=scripts, durations=durations, poison=poisons)
def test_nothing_is_lost_answers_come_in_order_and_what_is_done_was_answered(
    delivery: Delivery, script: list[Step], durations: list[float], poison: frozenset[int]
) -> None:
    """Exactly once, nothing is answered twice either."""
    world = world_of(delivery, durations, poison)
    play(world, script)

    answered_by_place = results(world.broker)
    every = list(range(RECORDS // PARTITIONS))
    assert {place: sorted(set(found)) for place, found in answered_by_place.items()} == {
        f"{IN}/{number}": every for number in range(PARTITIONS)
    }
    if delivery is Delivery.EXACTLY_ONCE:
        assert {len(found) for found in answered_by_place.values()} == {len(every)}
        assert len(world.broker.all(DEAD)) == len(poison)
    for number in range(PARTITIONS):
        mine = [
            where(one)[1]
            for one in world.broker.all(OUT)
            if one.topic_partition.partition == number
        ]
        assert list(dict.fromkeys(mine)) == sorted(set(mine))
    for session in world.broker.sessions:
        assert session.unassigned_writes == []
        reached: dict[TopicPartition, int] = {}
        for records, done in session.delivered:
            answered: dict[TopicPartition, list[int]] = {}
            for new in records:
                name, offset = where(new)
                partition = TopicPartition(IN, int(name.rpartition("/")[2]))
                answered.setdefault(partition, []).append(offset)
            assert set(answered) == set(done)
            for partition, end in done.items():
                mine = answered[partition]
                assert mine == list(range(mine[0], end))
                assert mine[0] == reached.get(partition) or (partition, mine[0]) in session.began
                reached[partition] = end
