"""Audit log entries in a hash chain: each hash covers the entry and the previous hash.

A changed, inserted or removed entry invalidates every later hash. If all are recomputed, the last
hash differs from a checkpoint that is stored elsewhere.
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
    """An action, to be appended to the audit log."""

    at: float
    actor: str
    action: str
    """Dotted name of the action (`endpoint.put`, `token.revoke`)."""
    object: str
    """The object of the action."""
    before: Any = None
    """JSON value without secrets; None if the object did not exist."""
    after: Any = None
    """See `before`."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the audit log; `before` and `after` are JSON texts, as they were hashed."""

    id: int
    """Counter from 1 without gaps."""
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
    """The position at which an audit log is inconsistent."""

    id: int
    reason: str


def entry_hash(entry: Entry) -> str:
    """Return the expected hash of an entry.

    SHA-256 over a JSON list without spaces, non-ASCII unescaped, in UTF-8: id, microseconds since
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
    """Return `entry` with its hash."""
    return msgspec.structs.replace(entry, hash=entry_hash(entry))


@dataclass(slots=True)
class Verifier:
    """Verifier of an audit log, which reads it in parts and stops at the first invalid entry."""

    head: Head = field(default_factory=Head)

    def read(self, entries: Iterable[Entry]) -> Broken | None:
        """Read the next entries; return the first inconsistency, or None."""
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
    """Return the inconsistency between an audit log and `checkpoint`, or None.

    Args:
        hash_there: The hash of entry number `checkpoint.count`; None if there is none.
    """
    if checkpoint.count == 0 or hash_there == checkpoint.hash:
        return None
    if hash_there is None:
        return Broken(id=checkpoint.count, reason="it was there, and the trail ends before it")
    return Broken(id=checkpoint.count, reason="its hash differs from the checkpoint")
