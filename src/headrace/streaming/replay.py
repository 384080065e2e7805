"""From where to where does a replay go, and has it got there? Times are Unix times."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from headrace.streaming.broker import Broker
from headrace.streaming.records import Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Records of each place from `first` on, before `end`."""

    first: Mapping[Place, int]
    end: Mapping[Place, int]

    @property
    def records(self) -> int:
        """How many; at most so many where offsets have gaps."""
        return sum(max(end - self.first.get(place, end), 0) for place, end in self.end.items())

    @property
    def partitions(self) -> int:
        """How many places have any."""
        return sum(end > self.first.get(place, end) for place, end in self.end.items())

    def is_done(self, committed: Mapping[Place, int]) -> bool:
        """Whether a group that is there has passed all of it."""
        return all(
            committed.get(place, self.first.get(place, end)) >= end
            for place, end in self.end.items()
        )


def span_from(broker: Broker, topics: Sequence[str], at_s: float) -> Span:
    """What was written at `at_s` or later, up to now.

    Raises:
        HeadraceError: There is no such topic, or the broker cannot find a time.
    """
    first: dict[Place, int] = {}
    end: dict[Place, int] = {}
    for topic in topics:
        first |= broker.offsets_at(topic, at_s)
        end |= {place: following for place, (_, following) in broker.ends(topic).items()}
    return Span(first=first, end=end)


def committed(broker: Broker, group: str, topics: Sequence[str]) -> dict[Place, int]:
    """Where a group is at all of its topics."""
    found: dict[Place, int] = {}
    for topic in topics:
        found |= broker.committed(group, topic)
    return found
