"""Client of Pulsar's admin REST API: backlogs and cursors of subscriptions, partitions of topics.

The client library speaks the binary protocol, in which a group's position and backlog are missing.
"""

import ssl
from collections.abc import Callable, Sequence
from typing import Final, TypeVar
from urllib.parse import quote_plus

import httpx
import msgspec

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    NotFoundError,
    PermissionDeniedError,
    UnavailableError,
)
from headrace.core.error_kind import UNDECODABLE, error_kind
from headrace.streaming.records import PartitionLag

_TIMEOUT_S: Final = 3.0
_BACKLOG: Final = "getPreciseBacklog=true&getEarliestTimeInBacklog=true"
T = TypeVar("T")


class Subscription(msgspec.Struct, frozen=True, rename="camel"):
    """Statistics of a subscription to one partition."""

    msg_backlog: int
    """Entries without acknowledgement; a batch of a producer is one entry."""
    earliest_msg_publish_time_in_backlog: int = 0
    """Unix time in milliseconds at which the oldest of them was written; 0 or less for none."""

    def lag(self, now_s: float) -> PartitionLag:
        """Return the lag at a Unix time."""
        oldest_s = self.earliest_msg_publish_time_in_backlog / 1000
        seconds = max(now_s - oldest_s, 0.0) if oldest_s > 0 else None
        return PartitionLag(records=self.msg_backlog, seconds=seconds if self.msg_backlog else 0.0)


class _Stats(msgspec.Struct, frozen=True):
    subscriptions: dict[str, Subscription] = {}
    partitions: dict[str, "_Stats"] = {}


class _Cursor(msgspec.Struct, frozen=True, rename="camel"):
    mark_delete_position: str


class _Internal(msgspec.Struct, frozen=True):
    cursors: dict[str, _Cursor] = {}


class PulsarAdmin:
    """Admin API of a cluster. Topics are full names (`persistent://TENANT/NAMESPACE/TOPIC`).

    Args:
        urls: Web addresses of its brokers; the first one that answers is used.
        token: Returns the current token; None for none.
        transport: Replaces the network in tests.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        token: Callable[[], str] | None,
        tls: ssl.SSLContext | bool = True,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        def authorize(request: httpx.Request) -> None:
            if token is not None:  # also for the broker to which another one redirects
                request.headers["authorization"] = f"Bearer {token()}"

        self._urls = urls
        self._client = httpx.Client(
            timeout=_TIMEOUT_S,
            verify=tls,
            transport=transport,
            trust_env=False,
            follow_redirects=True,
            event_hooks={"request": [authorize]},
        )

    def backlogs(self, topic: str, group: str, *, is_partitioned: bool) -> dict[str, Subscription]:
        """Return the statistics of a group by the full name of each partition."""
        path = "partitioned-stats?perPartition=true&" if is_partitioned else "stats?"
        stats = self._get(topic, path + _BACKLOG, _Stats)
        partitions = stats.partitions if is_partitioned else {topic: stats}
        return {
            name: partition.subscriptions[group]
            for name, partition in partitions.items()
            if group in partition.subscriptions
        }

    def position(self, topic: str, group: str) -> tuple[int, int] | None:
        """Return ledger and entry below which a group has acknowledged all of a partition.

        None if the group does not exist.
        """
        cursor = self._get(topic, "internalStats", _Internal).cursors.get(quote_plus(group))
        if cursor is None:
            return None
        ledger, _, entry = cursor.mark_delete_position.partition(":")
        return int(ledger), int(entry) + 1

    def create_partitions(self, topic: str, count: int) -> None:
        """Create a partitioned topic unless a topic of that name exists."""
        self._ask("PUT", topic, "partitions", count)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _get(self, topic: str, path: str, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(self._ask("GET", topic, path), type=kind)
        except UNDECODABLE as error:
            message = f"Pulsar's admin API answers unreadably: {error_kind(error)}"
            raise UnavailableError(message) from None

    def _ask(self, method: str, topic: str, path: str, body: object = None) -> bytes:
        """Return the body of a response, also of one that says that a topic exists."""
        path = f"/admin/v2/{topic.replace('://', '/', 1)}/{path}"
        problem: HeadraceError | None = None
        for url in self._urls:
            name = f"Pulsar's admin API at {url}"
            try:
                answer = self._client.request(method, url + path, json=body)
            except httpx.HTTPError as error:
                text = str(error) or type(error).__name__
                remedy = "set its address by ?admin= in the broker's URL"
                problem = UnavailableError(f"{name} does not answer: {text}; {remedy}")
                continue
            match answer.status_code:
                case 200 | 204 | 409:
                    return answer.content
                case 401:
                    raise FailedPreconditionError(f"{name} refuses the credentials of the URL")
                case 403:
                    raise PermissionDeniedError(f"{name} does not allow {method} of {topic}")
                case 404:
                    raise NotFoundError(f"{name} has no topic {topic}")
                case status:
                    problem = UnavailableError(f"{name} answers {status}: {answer.text[:300]}")
        assert problem is not None
        raise problem
