"""Dead letters of a stream, as people look at them and put them back."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from headrace.core import UnavailableError
from headrace.streaming.broker import Broker, Delivery, Membership, Session, Start
from headrace.streaming.letters import Choice, Letter, deal_with, letter_of, redrive_group
from headrace.streaming.records import Place

_AT_ONCE: Final = 500
_POLL_S: Final = 0.5
_IDLE_S: Final = 3.0
"""So long nothing comes of what should be there: offsets need not be without gaps."""
_AWAY_S: Final = 30.0
_FLUSH_S: Final = 30.0


class Redriven(NamedTuple):
    """What was done: letters put back, and those that are kept for another time."""

    redriven: int
    kept: int


def read_letters(broker: Broker, *, stream: str, topic: str, most: int) -> list[Letter]:
    """The letters that nobody has dealt with, the oldest of each partition first.

    Raises:
        HeadraceError: There is no such topic, or the broker cannot be asked.
    """
    after = {place: at for place, (at, end) in _left(broker, stream, topic).items() if at < end}
    return [letter_of(record) for record in broker.read(topic, after=after, most=most)]


def redrive(
    broker: Broker,
    *,
    stream: str,
    topic: str,
    choice: Choice,
    monotonic: Callable[[], float] = time.monotonic,
) -> Redriven:
    """Put letters back where they came from.

    Where the broker can do that, a letter is put back and counted as dealt with at once, so that
    nothing makes it come twice; elsewhere a crash in between may.

    Raises:
        ConflictError: Somebody else puts back letters of this stream at this moment.
        HeadraceError: The broker cannot be asked, or refuses.
    """
    left = {
        place: pair for place, pair in _left(broker, stream, topic).items() if pair[0] < pair[1]
    }
    if not left:
        return Redriven(0, 0)
    group = redrive_group(stream)
    exact = bool(broker.abilities.exactly_once)
    membership = Membership(
        group=group,
        member=group,
        topics=(topic,),
        delivery=Delivery.EXACTLY_ONCE if exact else Delivery.AT_LEAST_ONCE,
        start=Start.EARLIEST,
    )
    listener = _Listener()
    session = broker.join(membership, listener)
    try:
        done = _run(session, listener, choice, left, monotonic)
        if not session.flush(_FLUSH_S):
            raise UnavailableError(f"what was put back is not safe yet: {session.trouble}")
    finally:
        session.close()
    return done


class _Listener:
    """Knows whether the session has places."""

    def __init__(self) -> None:
        self.has_places = False

    def gained(self, places: Sequence[Place]) -> Mapping[Place, int] | None:
        self.has_places = self.has_places or bool(places)
        return None

    def losing(self, places: Sequence[Place]) -> None:
        """Whatever was done of them is delivered already."""

    def lost(self, places: Sequence[Place]) -> None:
        """As above."""


def _run(
    session: Session,
    listener: _Listener,
    choice: Choice,
    left: Mapping[Place, tuple[int, int]],
    monotonic: Callable[[], float],
) -> Redriven:
    at = {place: first for place, (first, _) in left.items()}
    ends = {place: end for place, (_, end) in left.items()}
    redriven = kept = 0
    heard_at = monotonic()
    while any(at[place] < ends[place] for place in at):
        if choice.limit is not None and redriven >= choice.limit:
            break
        records = session.poll(_AT_ONCE, _POLL_S)
        now = monotonic()
        if not records:
            if listener.has_places and not session.trouble and now - heard_at > _IDLE_S:
                break
            if now - heard_at > _AWAY_S:
                why = session.trouble or "the broker gives this group nothing"
                raise UnavailableError(f"cannot read the dead letters: {why}")
            continue
        heard_at = now
        step = deal_with(records, choice, ends=ends, redriven=redriven)
        if step.done:
            session.deliver(step.records, step.done)
        redriven, kept = redriven + step.redriven, kept + step.kept
        at |= step.done
        for record in records:  # those beyond the end say that all before them came
            if record.offset >= ends.get(record.place, 0):
                at[record.place] = max(at.get(record.place, 0), ends.get(record.place, 0))
    return Redriven(redriven, kept)


def _left(broker: Broker, stream: str, topic: str) -> dict[Place, tuple[int, int]]:
    """Of each partition where the letters begin that nobody dealt with, and where they end."""
    dealt = broker.committed(redrive_group(stream), topic)
    return {
        place: (max(first, dealt.get(place, first)), end)
        for place, (first, end) in broker.ends(topic).items()
    }
