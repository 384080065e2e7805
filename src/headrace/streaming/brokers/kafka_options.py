"""With which settings are a cluster's readers, members and writers made?"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.streaming.broker import Membership

_LONGEST_TRANSACTION_MS: Final = 15_000
_TRANSACTION_MS: Final = 10_000
_SHORTEST_POLL_INTERVAL_MS: Final = 30_000
_LONGEST_LOOK_S: Final = 20.0
"""Longer than a transaction of ours lasts, whose end is waited for."""
_LOOK_RATIO: Final = 2 / 3
POLL_INTERVAL: Final = "max.poll.interval.ms"
_HEARTBEATS: Final = 4  # within a session's timeout
_LONGEST_HEARTBEAT_MS: Final = 3_000
COOPERATIVE: Final = "cooperative-sticky"
_STRATEGY: Final = "partition.assignment.strategy"
_PROTOCOL: Final = "group.protocol"
LIMIT: Final = "message.max.bytes"
TRANSACTION: Final = "transaction.timeout.ms"
_DEFAULT_LIMIT_BYTES: Final = 1_000_000
_LINGER: Final = frozenset({"linger.ms", "queue.buffering.max.ms"})

Settings = dict[str, str | int | float | bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class KafkaOptions:
    """A cluster and how to speak to it.

    `address`: its servers, for people and for the client. `is_static`: members keep their places
    over a restart. `settings`: librdkafka's; they hold secrets.
    """

    address: str
    is_static: bool
    settings: Mapping[str, str] = field(repr=False)

    @property
    def is_cooperative(self) -> bool:
        """Whether only those places move between members that have to."""
        if self._is_kip_848:
            return True
        return self.settings.get(_STRATEGY, COOPERATIVE) == COOPERATIVE

    @property
    def longest_look_s(self) -> float:
        """How long a member may ask where it begins to read, within its own `poll`."""
        given_ms = int(self.settings.get(POLL_INTERVAL, _SHORTEST_POLL_INTERVAL_MS))
        return min(_LONGEST_LOOK_S, given_ms / 1000 * _LOOK_RATIO)

    @property
    def limit_bytes(self) -> int:
        """How large a record may be that is written."""
        return int(self.settings.get(LIMIT, _DEFAULT_LIMIT_BYTES))

    @property
    def lingers(self) -> bool:
        """Whether the user chose how long a record waits for others of its request."""
        return not _LINGER.isdisjoint(self.settings)

    def client(self) -> Settings:
        """What every client is made with."""
        return {
            # Each attempt to connect that fails would be a line, ten a second; errors and
            # `trouble` say it once.
            "log_level": "2",
            "reconnect.backoff.max.ms": "2000",
            **self.settings,
            "bootstrap.servers": self.address,
            "client.id": "headrace",
        }

    def reader(self) -> Settings:
        """A consumer that is no member of anything."""
        return {
            **self.client(),
            "group.id": "headrace-reader",
            # A member's; less than the client's own time of sessions is refused.
            POLL_INTERVAL: "300000",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "error",
            "allow.auto.create.topics": False,
            "fetch.queue.backoff.ms": "10",
            _STRATEGY: COOPERATIVE,
            _PROTOCOL: "classic",
        }

    def member(self, membership: Membership) -> Settings:
        """A consumer that is a member of a group."""
        timeout_ms = round(membership.session_timeout_s * 1000)
        made: Settings = {
            POLL_INTERVAL: str(max(3 * timeout_ms, _SHORTEST_POLL_INTERVAL_MS)),
            # The client's 1 s is as long as a backlog of 100,000 lasts: it would run dry.
            "fetch.queue.backoff.ms": "10",
            **self.client(),
            "group.id": membership.group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "enable.partition.eof": True,
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            # Where a new group begins is looked up; this is for what was forgotten before it
            # was read, and then nothing more may be lost.
            "auto.offset.reset": "earliest",
            "statistics.interval.ms": 1000,
        }
        if self.is_static:
            made["group.instance.id"] = membership.member
        if not self._is_kip_848:
            made["session.timeout.ms"] = timeout_ms
            made["heartbeat.interval.ms"] = max(
                1, min(timeout_ms // _HEARTBEATS, _LONGEST_HEARTBEAT_MS)
            )
            made.setdefault(_STRATEGY, COOPERATIVE)
        return made

    def producer(self, *, transactional_id: str = "") -> Settings:
        """A producer; with transactions if it has an id."""
        made: Settings = {
            # Longer than the queueing of a large request takes; small ones are sent at once.
            "linger.ms": "5",
            # As Java's clients do, so that a key is where others look for it.
            "partitioner": "murmur2_random",
            "message.timeout.ms": "120000",
            **self.client(),
            "enable.idempotence": True,
            "delivery.report.only.error": True,
        }
        if transactional_id:
            # Where no server can be reached the client would begin anew, and a call for the offsets
            # of a transaction then never returns (librdkafka's issue 5511). A session does without:
            # after a transaction that failed it makes its clients anew itself.
            made.setdefault("metadata.recovery.strategy", "none")
            given = int(self.settings.get(TRANSACTION, _TRANSACTION_MS))
            timeout_ms = min(given, _LONGEST_TRANSACTION_MS)
            made |= {
                "transactional.id": transactional_id,
                TRANSACTION: timeout_ms,
                "message.timeout.ms": timeout_ms,
            }
        return made

    @property
    def _is_kip_848(self) -> bool:
        return self.settings.get(_PROTOCOL) == "consumer"
