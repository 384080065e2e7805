"""Whatever polls, completions, rebalances, failures and crashes come in which order: laws hold."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import UnavailableError
from headrace.streaming.broker import Delivery
from headrace.streaming.records import TopicPartition
from headrace.testing.streams import MemoryBroker, TurnedClock
from tests.unit.streaming.world import DEAD, GROUP, IN, OUT, Member, broker_with, inputs, where

PARTITIONS = 3
RECORDS = 90
SETTLE_TURNS = 2000

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


class World:
    """Two members that share three partitions; a script of what happens, then calm."""

    def __init__(self, delivery: Delivery, durations: list[float], poison: frozenset[int]) -> None:
        self.clock = TurnedClock()
        self.broker: MemoryBroker = broker_with(
            self.clock, partitions=PARTITIONS, safe_after_s=0.01, spreads=False
        )
        self.left = inputs(RECORDS, partitions=PARTITIONS, poison=poison)
        self.poison = poison
        at = iter(range(1 << 30))
        self.members = [
            Member(
                name=name,
                broker=self.broker,
                delivery=delivery,
                clock=self.clock,
                seconds=lambda _: durations[next(at) % len(durations)],
            )
            for name in ("a", "b")
        ]

    def play(self, script: list[Step]) -> None:
        """From a start at which there is more than the model can take at once."""
        self.do("send", RECORDS // 2, 0)
        for which in (0, 2, 5):
            self.do("give", which, 0)
        for what, which, amount in script:
            self.clock.turn(amount if what == "turn" else 0.0)
            self.do(what, which, amount)

    def do(self, what: str, which: int, amount: float) -> None:
        member = self.members[which % 2]
        match what:
            case "turn":
                member.run_once()
            case "send":
                some, self.left = self.left[:which], self.left[which:]
                self.broker.send(some)
            case "give" | "seize" if not member.is_out:
                partition = TopicPartition(IN, which // 2)
                self.broker.give(GROUP, partition, member.session, is_seized=what == "seize")
            case "crash" if not self.broker.is_away and not member.is_out:
                member.crash(written=int(amount))
            case "refuse":
                member.session.fails = UnavailableError("a broken transaction")
            case "away" | "back":
                member.away = what == "away"
            case "broker away" | "broker back":
                self.broker.is_away = what == "broker away"

    def settle(self) -> None:
        """All is well again: everything has to come to its end."""
        self.broker.is_away = False
        some, self.left = self.left, []
        self.broker.send(some)
        for member in self.members:
            member.away = False
            member.session.fails = None
        for turn in range(SETTLE_TURNS):
            for number in range(PARTITIONS):
                partition = TopicPartition(IN, number)
                if self.broker.owner(GROUP, partition) not in [one.session for one in self.members]:
                    self.broker.give(GROUP, partition, self.members[0].session, is_seized=True)
            for member in self.members:
                member.run_once()
            self.clock.turn(0.05)
            if turn > 5 and self.is_done():
                break
        for member in self.members:
            member.run_once()
            member.session.flush(1.0)

    def is_done(self) -> bool:
        ends = {partition: end for partition, (_, end) in self.broker.ends(IN).items()}
        reached = self.broker.committed(GROUP, IN)
        return all(reached.get(partition, 0) == end for partition, end in ends.items())

    def results(self) -> dict[str, list[int]]:
        """The offsets that were answered or dead-lettered, by place, in the order of the log."""
        found: dict[str, list[int]] = {f"{IN}/{number}": [] for number in range(PARTITIONS)}
        for topic in (OUT, DEAD):
            for record in self.broker.all(topic):
                partition, offset = where(record)
                found[partition].append(offset)
        return found


def firsts(numbers: list[int]) -> list[int]:
    return list(dict.fromkeys(numbers))


scripts = st.builds(script_of, st.integers(0, 1 << 32), st.integers(0, 120))
durations = st.lists(st.floats(0, 0.7), min_size=1, max_size=5)
poisons = st.frozensets(st.integers(0, RECORDS - 1), max_size=4)


@pytest.mark.slow
@given(script=scripts, durations=durations, poison=poisons)
def test_nothing_is_lost_and_answers_of_a_place_come_in_order(
    script: list[Step], durations: list[float], poison: frozenset[int]
) -> None:
    world = World(Delivery.AT_LEAST_ONCE, durations, poison)
    world.play(script)
    world.settle()

    each = RECORDS // PARTITIONS
    assert {partition: set(found) for partition, found in world.results().items()} == {
        f"{IN}/{number}": set(range(each)) for number in range(PARTITIONS)
    }
    for number in range(PARTITIONS):
        mine = [
            where(one)[1]
            for one in world.broker.all(OUT)
            if one.topic_partition.partition == number
        ]
        assert firsts(mine) == sorted(set(mine))


@pytest.mark.slow
@given(script=scripts, durations=durations, poison=poisons)
def test_exactly_once_is_once_and_in_order(
    script: list[Step], durations: list[float], poison: frozenset[int]
) -> None:
    world = World(Delivery.EXACTLY_ONCE, durations, poison)
    world.play(script)
    world.settle()

    each = RECORDS // PARTITIONS
    assert {partition: sorted(found) for partition, found in world.results().items()} == {
        f"{IN}/{number}": list(range(each)) for number in range(PARTITIONS)
    }
    assert len(world.broker.all(DEAD)) == len(poison)
    for number in range(PARTITIONS):
        mine = [
            where(one)[1]
            for one in world.broker.all(OUT)
            if one.topic_partition.partition == number
        ]
        assert mine == sorted(mine)


@pytest.mark.slow
@given(script=scripts, durations=durations, poison=poisons, delivery=st.sampled_from(Delivery))
def test_what_is_done_is_all_that_was_answered_up_to_there(
    script: list[Step],
    durations: list[float],
    poison: frozenset[int],
    delivery: Delivery,
) -> None:
    world = World(delivery, durations, poison)
    world.play(script)
    world.settle()

    for session in world.broker.sessions:
        assert session.unassigned_writes == []
        reached: dict[TopicPartition, int] = {}
        for records, done in session.delivered:
            answered: dict[TopicPartition, list[int]] = {}
            for new in records:
                if new.topic == OUT:
                    number, _, offset = (new.value or b"").decode().rpartition("@")
                else:
                    headers = dict(new.headers)
                    number = headers["headrace-partition"].decode()
                    offset = headers["headrace-offset"].decode()
                partition = TopicPartition(IN, int(number.rpartition("/")[2]))
                answered.setdefault(partition, []).append(int(offset))
            assert set(answered) == set(done)
            for partition, end in done.items():
                mine = answered[partition]
                assert mine == list(range(mine[0], end))
                assert mine[0] == reached.get(partition) or (partition, mine[0]) in session.began
                reached[partition] = end
