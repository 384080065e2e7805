"""Entries of the audit log in a chain: each hash covers the entry and the hash before.

Whoever changes, inserts or removes an entry has to make every later one anew, and then the last
hash is another than the one that was noted elsewhere.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

GENESIS: Final = ""
"""The hash before the first entry."""


class AuditEntry(msgspec.Struct, frozen=True, kw_only=True):
    """Something that somebody did, to be entered in the trail."""

    at: float
    actor: str
    action: str
    """What, in words with dots (`endpoint.put`, `token.revoke`)."""
    object: str
    """To what."""
    before: Any = None
    """As they can be said in JSON, without secrets; None where there is nothing."""
    after: Any = None
    """See `before`."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit log; `before` and `after` are JSON texts, as they were hashed."""

    id: int
    """Counts from 1 without gaps."""
    at: float
    actor: str
    action: str
    object: str
    before: str
    after: str
    previous: str
    """The hash of the preceding entry."""
    hash: str


class Head(msgspec.Struct, frozen=True, kw_only=True):
    """The end of the audit log: the number of entries, and the hash of the last one.

    A copy outside of the database is a checkpoint: a log that was cut or rewritten contradicts it.
    """

    count: int = 0
    hash: str = GENESIS


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """Where a trail is not what was written."""

    id: int
    reason: str


def entry_hash(entry: Entry) -> str:
    """What an entry's hash has to be.

    SHA-256 over a JSON list without spaces, non-ASCII as it is, in UTF-8: id, microseconds since
    1970, actor, action, object, before, after, previous.
    """
    content = [
        entry.id,
        round(entry.at * 1_000_000),
        entry.actor,
        entry.action,
        entry.object,
        entry.before,
        entry.after,
        entry.previous,
    ]
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def chained(entry: Entry) -> Entry:
    """`entry` with its hash."""
    return msgspec.structs.replace(entry, hash=entry_hash(entry))


@dataclass(slots=True)
class Verifier:
    """Reads a trail from its beginning, in parts, and stops at the first entry that is wrong."""

    head: Head = field(default_factory=Head)

    def read(self, entries: Iterable[Entry]) -> Broken | None:
        """Take the next entries; what is wrong with the first one that is."""
        for entry in entries:
            broken = self._broken(entry)
            if broken is not None:
                return broken
            self.head = Head(count=entry.id, hash=entry.hash)
        return None

    def _broken(self, entry: Entry) -> Broken | None:
        expected = self.head.count + 1
        if entry.id != expected:
            return Broken(id=expected, reason="it is missing")
        if entry.previous != self.head.hash:
            return Broken(id=entry.id, reason="it does not follow the entry before it")
        if entry.hash != entry_hash(entry):
            return Broken(id=entry.id, reason="its content is not what was written")
        return None


def missed(checkpoint: Head, *, hash_there: str | None) -> Broken | None:
    """Whether a trail does not lead past `checkpoint`.

    Args:
        hash_there: The hash of entry number `checkpoint.count`; None if there is none.
    """
    if checkpoint.count == 0 or hash_there == checkpoint.hash:
        return None
    if hash_there is None:
        return Broken(id=checkpoint.count, reason="it was there, and the trail ends before it")
    return Broken(id=checkpoint.count, reason="its hash differs from the checkpoint")
