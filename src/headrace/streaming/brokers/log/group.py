"""Partitions of the members of a group, agreed on in the file of an embedded log.

Each member renews its heartbeat. Members whose heartbeat is too old are removed by the next member
that checks, and their partitions become free. A member gives away what it has beyond its share and
takes what is free up to its share; nobody waits for anybody. A member's writes succeed only while
its claim, under the number that it got when it joined (its epoch), is in force.
"""

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from zlib import crc32

import msgspec

from headrace.core import ConflictError
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.log.records import Catalogue, ends, offset_at

_EPOCH_BITS: Final = 62
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[str, ...]).decode


@dataclass(frozen=True, slots=True, kw_only=True)
class Moves:
    """What changes for a member, as ids of places: gone, to be given away, got."""

    lost: tuple[int, ...] = ()
    surplus: tuple[int, ...] = ()
    assigned: tuple[int, ...] = ()


def shares(holding: Mapping[str, int], partitions: int, *, topic: str) -> dict[str, int]:
    """How many of a topic's places each member should have; who has more already keeps one more.

    Args:
        holding: Member ▸ how many it has now.
        topic: So that not the same member has the one more of every topic.
    """
    share, more = divmod(partitions, len(holding))
    order = sorted(
        holding, key=lambda name: (-holding[name], crc32(f"{topic}/{name}".encode()), name)
    )
    return {name: share + (rank < more) for rank, name in enumerate(order)}


def join(db: sqlite3.Connection, topics: Catalogue, membership: Membership, now_s: float) -> int:
    """Become a member, in place of one of the same name; the epoch that others see it by."""
    group, epoch = membership.group, secrets.randbits(_EPOCH_BITS)
    for name in membership.topics:
        for partition_id in topics.topic(db, name).partitions:
            _begin(db, membership, partition_id)
    old = _epoch_of(db, group, membership.member)
    if old is not None:
        db.execute(
            'UPDATE claims SET epoch = ? WHERE "group" = ? AND epoch = ?', (epoch, group, old)
        )
    _register(db, membership, epoch, now_s)
    _bump_generation(db, group)
    return epoch


def heartbeat(
    db: sqlite3.Connection,
    topics: Catalogue,
    membership: Membership,
    epoch: int,
    *,
    held: frozenset[int],
    now_s: float,
) -> Moves:
    """Say that this member lives, remove who does not, and take what is free and due.

    Raises:
        ConflictError: Another has taken this member's place.
    """
    group = membership.group
    check_not_replaced(db, membership, epoch, allow_removed=True)
    if _epoch_of(db, group, membership.member) is None:
        _bump_generation(db, group)  # it counted as dead, and is back
    _register(db, membership, epoch, now_s)
    _remove_dead(db, group, now_s)
    claims: dict[int, int] = dict(
        db.execute('SELECT place, epoch FROM claims WHERE "group" = ?', (group,))
    )
    claimed = {partition_id for partition_id, owner in claims.items() if owner == epoch}
    members = _members(db, group)
    surplus: list[int] = []
    assigned: list[int] = []
    for topic in (topics.topic(db, name) for name in membership.topics):
        holding = {
            name: sum(
                claims.get(partition_id) == epoch_of_member for partition_id in topic.partitions
            )
            for name, (epoch_of_member, subscribed) in members.items()
            if topic.name in subscribed
        }
        # What it has from the one whose name it took, and does not read yet, it gives away first.
        owned = sorted(
            claimed.intersection(topic.partitions), key=lambda one: (one not in held, one)
        )
        share = shares(holding, len(topic.partitions), topic=topic.name)[membership.member]
        surplus += owned[share:]
        free = [partition_id for partition_id in topic.partitions if partition_id not in claims]
        assigned += [partition_id for partition_id in owned[:share] if partition_id not in held]
        assigned += free[: max(share - len(owned), 0)]
    for partition_id in assigned:
        db.execute("INSERT OR REPLACE INTO claims VALUES (?, ?, ?)", (group, partition_id, epoch))
    if set(assigned) - claimed:
        _bump_generation(db, group)
    unread = [partition_id for partition_id in surplus if partition_id not in held]
    if unread:
        release(db, group, epoch, unread)
    return Moves(
        lost=tuple(held - claimed),
        surplus=tuple(partition_id for partition_id in surplus if partition_id in held),
        assigned=tuple(assigned),
    )


def release(db: sqlite3.Connection, group: str, epoch: int, partitions: Sequence[int]) -> None:
    """Let others have these."""
    db.executemany(
        'DELETE FROM claims WHERE "group" = ? AND place = ? AND epoch = ?',
        [(group, partition_id, epoch) for partition_id in partitions],
    )
    _bump_generation(db, group)


def leave(db: sqlite3.Connection, membership: Membership, epoch: int) -> None:
    """Be no member any more; nothing happens if another has taken its place."""
    group = membership.group
    db.execute('DELETE FROM members WHERE "group" = ? AND epoch = ?', (group, epoch))
    db.execute('DELETE FROM claims WHERE "group" = ? AND epoch = ?', (group, epoch))
    _bump_generation(db, group)


def is_alive(db: sqlite3.Connection, group: str, now_s: float) -> bool:
    """Whether a member runs."""
    _remove_dead(db, group, now_s)
    return bool(_members(db, group))


def generation(db: sqlite3.Connection, group: str) -> int:
    """Grows whenever members or claims change."""
    row = db.execute("SELECT generation FROM groups WHERE name = ?", (group,)).fetchone()
    return 0 if row is None else int(row[0])


def check_not_replaced(
    db: sqlite3.Connection, membership: Membership, epoch: int, *, allow_removed: bool
) -> None:
    """Raises ConflictError if another has this member's name, or if it counts as dead."""
    now = _epoch_of(db, membership.group, membership.member)
    if now == epoch or (now is None and allow_removed):
        return
    who = f"member '{membership.member}' of group '{membership.group}'"
    if now is None:
        reason = f"gave no sign of life for {membership.session_timeout_s:g} s, and was removed"
    else:
        reason = "was replaced by another of that name"
    raise ConflictError(f"{who} {reason}; what it delivers now would be there twice")


def check_claims(
    db: sqlite3.Connection, membership: Membership, epoch: int, partitions: Mapping[int, str]
) -> None:
    """Raises ConflictError if one of these (id ▸ name) is another member's, or nobody's."""
    for partition_id, name in partitions.items():
        row = db.execute(
            'SELECT epoch FROM claims WHERE "group" = ? AND place = ?',
            (membership.group, partition_id),
        ).fetchone()
        if row != (epoch,):
            message = (
                f"partition {name} is no longer assigned to member '{membership.member}' of group "
                f"'{membership.group}'; records that it writes now would be duplicates"
            )
            raise ConflictError(message)


def position(db: sqlite3.Connection, group: str, partition_id: int) -> int | None:
    """The offset that is next for a group; None where it never was."""
    row = db.execute(
        'SELECT next FROM positions WHERE "group" = ? AND place = ?', (group, partition_id)
    ).fetchone()
    return None if row is None else int(row[0])


def move(db: sqlite3.Connection, group: str, positions: Mapping[int, int]) -> None:
    """Put a group there."""
    db.executemany(
        "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
        [(group, partition_id, offset) for partition_id, offset in positions.items()],
    )


def _begin(db: sqlite3.Connection, membership: Membership, partition_id: int) -> None:
    """Where a group that never read begins is settled at once: what comes from now on counts."""
    if position(db, membership.group, partition_id) is not None:
        return
    if membership.start_s is not None:
        offset = offset_at(db, partition_id, membership.start_s)
    else:
        first, following = ends(db, partition_id)
        offset = first if membership.start is StartPosition.EARLIEST else following
    move(db, membership.group, {partition_id: offset})


def _register(db: sqlite3.Connection, membership: Membership, epoch: int, now_s: float) -> None:
    db.execute(
        "INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?)",
        (
            membership.group,
            membership.member,
            epoch,
            _encode(membership.topics),
            now_s,
            membership.session_timeout_s,
        ),
    )


def _remove_dead(db: sqlite3.Connection, group: str, now_s: float) -> None:
    """Who was seen too long ago, or in the future: a clock was put back since."""
    removed = db.execute(
        'DELETE FROM members WHERE "group" = ? AND abs(? - seen_s) > timeout_s', (group, now_s)
    ).rowcount
    freed = db.execute(
        'DELETE FROM claims WHERE "group" = ? AND epoch NOT IN '
        '(SELECT epoch FROM members WHERE "group" = ?)',
        (group, group),
    ).rowcount
    if removed or freed:
        _bump_generation(db, group)


def _members(db: sqlite3.Connection, group: str) -> dict[str, tuple[int, tuple[str, ...]]]:
    rows = db.execute('SELECT name, epoch, topics FROM members WHERE "group" = ?', (group,))
    return {name: (epoch, _decode(topics)) for name, epoch, topics in rows}


def _epoch_of(db: sqlite3.Connection, group: str, member: str) -> int | None:
    row = db.execute(
        'SELECT epoch FROM members WHERE "group" = ? AND name = ?', (group, member)
    ).fetchone()
    return None if row is None else int(row[0])


def _bump_generation(db: sqlite3.Connection, group: str) -> None:
    db.execute(
        "INSERT INTO groups VALUES (?, 1) ON CONFLICT (name) DO UPDATE "
        "SET generation = generation + 1",
        (group,),
    )
