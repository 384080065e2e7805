"""How many workers should a stream have, by what they say of its lag?"""

from headrace.autoscale.stream import StreamLook, StreamScale, scale_stream
from headrace.control.desired import DesiredStream
from headrace.control.streams.status import lag_of
from headrace.control.streams.workers import Team


def is_scaled(wanted: DesiredStream) -> bool:
    """Whether the number of its workers goes by lag."""
    return wanted.min_workers < wanted.max_workers


def count_of(wanted: DesiredStream, team: Team) -> int:
    """How many workers a stream should have now."""
    if not is_scaled(wanted):
        return wanted.min_workers
    return min(max(team.scale.workers, wanted.min_workers), wanted.max_workers)


def rescale(team: Team, wanted: DesiredStream, *, paused: bool, now: float) -> bool:
    """Look at the lag, and decide anew; whether the number is another.

    While a worker is silent, or the stream paused, the lag says nothing.

    Args:
        now: Monotonic time.
    """
    statuses = team.statuses()
    lag, before = lag_of(statuses), team.scale.workers
    is_silent = any(worker.silent_since is not None for worker in team.running())
    is_known = len(statuses) >= count_of(wanted, team) and not (paused or is_silent)
    look = StreamLook(
        now=now,
        lag_records=lag.records if is_known else None,
        lag_s=lag.seconds if is_known else None,
        rate=sum(worker.rate for worker in team.workers.values()),
        partitions=lag.partitions if is_known else None,
    )
    scale = StreamScale(
        min_workers=wanted.min_workers,
        max_workers=wanted.max_workers,
        target_lag_s=wanted.target_lag_s,
    )
    wish, team.scale = scale_stream(scale, look, team.scale)
    team.scaling = f"{wish.reason}: {wish.message}" if wish.message else str(wish.reason)
    return team.scale.workers != before
