"""Consumer groups of an embedded log: heartbeats, and partition claims in the log's file.

Each member renews its heartbeat. Members whose heartbeat is too old are removed by the next member
that checks, and their partitions become free. A member releases partitions beyond its share and
claims free ones up to its share; members do not wait for each other. A member's writes succeed only
while it has the claim, under the epoch (a number) that it received when it joined.
"""

import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
from zlib import crc32

import msgspec

from headrace.core import ConflictError
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.log.records import Catalogue, ends, offset_at

_EPOCH_BITS: Final = 62
_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(tuple[str, ...]).decode


class Moves(NamedTuple):
    """Assignment changes of a member, as partition ids."""

    lost: tuple[int, ...]
    """Partitions that another member has already."""
    surplus: tuple[int, ...]
    """Partitions to revoke."""
    assigned: tuple[int, ...]
    """Newly assigned partitions."""


def shares(holding: Mapping[str, int], partitions: int, *, topic: str) -> dict[str, int]:
    """Return how many partitions of a topic each member should have.

    If the partitions do not divide evenly, members that already have more keep the extra ones.

    Args:
        holding: Number of partitions that each member has now.
        topic: Name of the topic, so that odd partitions of several topics go to different members.
    """
    share, more = divmod(partitions, len(holding))
    order = sorted(
        holding, key=lambda name: (-holding[name], crc32(f"{topic}/{name}".encode()), name)
    )
    return {name: share + (rank < more) for rank, name in enumerate(order)}


def join(db: sqlite3.Connection, topics: Catalogue, membership: Membership, now_s: float) -> int:
    """Join a group, replacing a member of the same name; return the epoch that identifies it."""
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
    """Renew the heartbeat, remove dead members, and claim free partitions up to the share.

    Raises:
        ConflictError: Another member has replaced this one.
    """
    group = membership.group
    check_not_replaced(db, membership, epoch, allow_removed=True)
    if _epoch_of(db, group, membership.member) is None:
        _bump_generation(db, group)  # it was removed as dead, and is alive
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
        # Surplus partitions that it does not read yet, from the member it replaced, go first.
        owned = sorted(
            claimed.intersection(topic.partitions),
            key=lambda partition_id: (partition_id not in held, partition_id),
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
    """Release the claims of these partitions."""
    db.executemany(
        'DELETE FROM claims WHERE "group" = ? AND place = ? AND epoch = ?',
        [(group, partition_id, epoch) for partition_id in partitions],
    )
    _bump_generation(db, group)


def leave(db: sqlite3.Connection, membership: Membership, epoch: int) -> None:
    """Leave the group; do nothing if another member has replaced this one."""
    group = membership.group
    db.execute('DELETE FROM members WHERE "group" = ? AND epoch = ?', (group, epoch))
    db.execute('DELETE FROM claims WHERE "group" = ? AND epoch = ?', (group, epoch))
    _bump_generation(db, group)


def is_alive(db: sqlite3.Connection, group: str, now_s: float) -> bool:
    """Return whether a member of the group is running."""
    _remove_dead(db, group, now_s)
    return bool(_members(db, group))


def generation(db: sqlite3.Connection, group: str) -> int:
    """Return a number that grows whenever members or claims change."""
    row = db.execute("SELECT generation FROM groups WHERE name = ?", (group,)).fetchone()
    return 0 if row is None else int(row[0])


def check_not_replaced(
    db: sqlite3.Connection, membership: Membership, epoch: int, *, allow_removed: bool
) -> None:
    """Raise ConflictError if another member has this name, or this one was removed as dead."""
    now = _epoch_of(db, membership.group, membership.member)
    if now == epoch or (now is None and allow_removed):
        return
    who = f"member '{membership.member}' of group '{membership.group}'"
    if now is None:
        reason = f"sent no heartbeat for {membership.session_timeout_s:g} s, and was removed"
    else:
        reason = "was replaced by another member of that name"
    raise ConflictError(f"{who} {reason}; records that it writes now would be duplicates")


def check_claims(
    db: sqlite3.Connection, membership: Membership, epoch: int, partitions: Mapping[int, str]
) -> None:
    """Raise ConflictError if a partition (name by id) is not claimed by this member."""
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
    """Return the next offset of a group; None without one."""
    row = db.execute(
        'SELECT next FROM positions WHERE "group" = ? AND place = ?', (group, partition_id)
    ).fetchone()
    return None if row is None else int(row[0])


def move(db: sqlite3.Connection, group: str, positions: Mapping[int, int]) -> None:
    """Set the offsets of a group."""
    db.executemany(
        "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
        [(group, partition_id, offset) for partition_id, offset in positions.items()],
    )


def _begin(db: sqlite3.Connection, membership: Membership, partition_id: int) -> None:
    """Store the start offset of a new group at once, so that it reads records from now on."""
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
    """Remove members whose heartbeat is too old, or in the future after a clock was set back."""
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
