"""What is written down of a cluster that does not take what we want? Pure."""

from collections.abc import Iterator, Mapping

from headrace.control.kubernetes.rolling import Roll
from headrace.control.store import Event

Problems = Mapping[tuple[str, str], str]
"""By endpoint and arm's key."""


def problem_events(before: Problems, now: Problems, *, at: float) -> Iterator[Event]:
    """What is written when other arms cannot be brought about than before."""
    for endpoint, arm in sorted(now.keys() | before.keys()):
        problem = now.get((endpoint, arm), "")
        if problem == before.get((endpoint, arm), ""):
            continue
        reason = "ClusterTrouble" if problem else "ClusterTroubleEnded"
        message = problem or "the cluster takes what there shall be"
        yield _event(reason, f"version {arm}: {message}", at=at, endpoint=endpoint, arm=arm)


def roll_events(before: Roll, now: Roll, *, at: float) -> Iterator[Event]:
    """What is written when Deployments begin to wait for others, are held up, or wait no more."""
    names = [change.found["metadata"]["name"] for change in now.later]
    those = f"{len(names)} Deployment(s) keep the pods they have"
    data = {"waiting": names, "rolling": list(now.rolling), "held_by": list(now.held_by)}
    if now.held_by and names and now.held_by != before.held_by:
        held = ", ".join(now.held_by)
        message = f"{those}: new pods of {held} do not get ready (mend or remove what they serve)"
        yield _event("RollHeld", message, at=at, data=data)
    elif names and not before.later:
        message = f"{those} until those of others are replaced (kubernetes.max_rolling_ratio)"
        yield _event("RollBegun", message, at=at, data=data)
    elif before.later and not names:
        yield _event("RollDone", "no Deployment waits to have its pods replaced", at=at, data=data)


def _event(
    reason: str,
    message: str,
    *,
    at: float,
    endpoint: str = "",
    arm: str = "",
    data: Mapping[str, object] | None = None,
) -> Event:
    told = {"arm": arm} if data is None else dict(data)
    return Event(
        at=at, endpoint=endpoint, kind="cluster", reason=reason, message=message, data=told
    )
