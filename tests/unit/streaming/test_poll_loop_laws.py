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
    world = World(delivery, durations, poison)
    world.play(script)
    world.settle()

    results = world.results()
    every = list(range(RECORDS // PARTITIONS))
    assert {partition: sorted(set(found)) for partition, found in results.items()} == {
        f"{IN}/{number}": every for number in range(PARTITIONS)
    }
    if delivery is Delivery.EXACTLY_ONCE:
        assert {len(found) for found in results.values()} == {len(every)}
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
