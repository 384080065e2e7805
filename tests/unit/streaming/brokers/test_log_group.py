"""Members of a group come to share places evenly, and move no more of them than they must."""

import sqlite3
from collections.abc import Iterator
from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import ConflictError
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.log import group
from headrace.streaming.brokers.log.file import _SCHEMA
from headrace.streaming.brokers.log.group import shares
from headrace.streaming.brokers.log.records import Catalogue

RETENTION_S = 1000.0
RETENTION_BYTES = 1 << 50
NAMES = ("a", "b", "c", "d", "e")


def new_db(**topics: int) -> sqlite3.Connection:
    """A log in memory, with these topics of so many partitions."""
    db = sqlite3.connect(":memory:", isolation_level=None)
    for statement in _SCHEMA.split(";"):
        db.execute(statement)
    for name, partitions in topics.items():
        (id_,) = db.execute(
            "INSERT INTO topics (name, retention_s, retention_bytes) VALUES (?, ?, ?) RETURNING id",
            (name, RETENTION_S, RETENTION_BYTES),
        ).fetchone()
        for number in range(partitions):
            db.execute("INSERT INTO places (topic, partition) VALUES (?, ?)", (id_, number))
    return db


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    made = new_db(t=4)
    yield made
    made.close()


class Member:
    """What a session does about its places, without reading."""

    def __init__(self, db: sqlite3.Connection, name: str, *topics: str, now_s: float = 0.0) -> None:
        self.db = db
        self.membership = Membership(
            group="g", member=name, topics=topics or ("t",), start=StartPosition.EARLIEST
        )
        self.topics = Catalogue()
        self.held: set[int] = set()
        self.given = 0
        self.epoch = group.join(db, self.topics, self.membership, now_s)

    def look(self, now_s: float = 0.0) -> group.Moves:
        moves = group.heartbeat(
            self.db,
            self.topics,
            self.membership,
            self.epoch,
            held=frozenset(self.held),
            now_s=now_s,
        )
        self.held -= {*moves.lost, *moves.surplus}
        self.held |= set(moves.assigned)
        if moves.surplus:
            self.given += len(moves.surplus)
            group.release(self.db, "g", self.epoch, moves.surplus)
        return moves

    def leave(self) -> None:
        group.leave(self.db, self.membership, self.epoch)


@given(
    holding=st.dictionaries(st.sampled_from(NAMES), st.integers(0, 8), min_size=1),
    partitions=st.integers(0, 20),
)
def test_shares_sum_to_all_places_and_differ_by_one_at_most(
    holding: dict[str, int], partitions: int
) -> None:
    share = shares(holding, partitions, topic="t")

    assert share.keys() == holding.keys()
    assert sum(share.values()) == partitions
    assert max(share.values()) - min(share.values()) <= 1
    for one, two in permutations(holding, 2):
        assert holding[one] <= holding[two] or share[one] >= share[two]


@given(
    partitions=st.integers(1, 9),
    steps=st.lists(
        st.tuples(st.sampled_from(NAMES), st.sampled_from(["look", "leave", "crash", "late"]))
    ),
)
def test_members_that_come_and_go_never_share_a_place_and_end_with_all_of_them(
    partitions: int, steps: list[tuple[str, str]]
) -> None:
    """One that was replaced may look or leave late; it takes nothing along."""
    db = new_db(t=partitions)
    members: dict[str, Member] = {}
    for name, step in steps:
        if name not in members or step in {"crash", "late"}:
            old = members.get(name)
            members[name] = Member(db, name)
            if old is not None and step == "late":
                with pytest.raises(ConflictError, match="was replaced by another member"):
                    old.look()
                old.leave()
        elif step == "leave":
            members.pop(name).leave()
        else:
            members[name].look()
        held = [partition for member in members.values() for partition in member.held]
        assert len(held) == len(set(held))
    members = members or {"a": Member(db, "a")}
    for _ in range(3):
        for member in members.values():
            member.look()

    counts = [len(member.held) for member in members.values()]
    db.close()

    assert sum(counts) == partitions
    assert max(counts) - min(counts) <= 1


def test_one_more_member_takes_only_its_share(db: sqlite3.Connection) -> None:
    one, two = Member(db, "one"), Member(db, "two")
    for member in (one, two, one, two):
        member.look()
    three = Member(db, "three")
    for member in (one, two, three, one, two, three):
        member.look()

    assert sorted(len(member.held) for member in (one, two, three)) == [1, 1, 2]
    assert one.given + two.given == 1


def test_several_topics_of_one_partition_are_spread() -> None:
    db = new_db(**{f"t{number}": 1 for number in range(20)})
    topics = [f"t{number}" for number in range(20)]
    one, two = Member(db, "one", *topics), Member(db, "two", *topics)
    for member in (one, two, one, two):
        member.look()
    db.close()

    assert len(one.held) + len(two.held) == 20
    assert 5 <= len(one.held) <= 15


def test_who_does_not_read_a_topic_has_no_part_of_it() -> None:
    db = new_db(t=4, u=2)
    one, two = Member(db, "one", "t"), Member(db, "two", "u")
    for member in (one, two, one, two):
        member.look()
    db.close()

    assert (len(one.held), len(two.held)) == (4, 2)


@pytest.mark.parametrize("seen_s", [100.0, -100.0])
def test_a_member_of_long_ago_or_of_the_future_is_removed(
    db: sqlite3.Connection, seen_s: float
) -> None:
    dead = Member(db, "dead", now_s=seen_s)
    dead.look(seen_s)
    heir = Member(db, "heir")
    heir.look(0.0)

    assert len(heir.held) == 4
    assert not dead.look(1.0).assigned
    assert dead.held == set()


def test_the_generation_grows_when_a_member_that_was_removed_is_back(
    db: sqlite3.Connection,
) -> None:
    silent = Member(db, "silent")
    silent.look()
    heir = Member(db, "heir", now_s=100.0)
    heir.look(100.0)
    before = group.generation(db, "g")
    silent.look(100.0)

    assert group.generation(db, "g") > before
    assert len(heir.look(100.0).surplus) == 2


def test_a_member_that_is_back_gives_away_at_once_what_others_should_have(
    db: sqlite3.Connection,
) -> None:
    Member(db, "one").look()
    two = Member(db, "two")
    back = Member(db, "one")

    moves = back.look()
    two.look()

    assert (moves.lost, moves.surplus) == ((), ())
    assert len(moves.assigned) == 2
    assert len(two.held) == 2
    assert not back.held & two.held
