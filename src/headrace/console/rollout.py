"""Page of a rollout: its step, its traffic shares, its evidence, and the commands for it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from headrace.console.charts import IntervalMark, SequenceChart, charts_of, interval_of
from headrace.console.forms import FormInput, confirmation
from headrace.console.view import PageRequest, PageView, Params, RefusedError, may_operate
from headrace.control.api.events import EventList
from headrace.control.api.rollouts import RolloutList
from headrace.control.rollouts.status import MetricStatus, RolloutEvidence, RolloutStatus
from headrace.rollout.state import RolloutPhase, Verb

OLD_LOOK: Final = 1
NEW_LOOK: Final = 2
BASELINE_LOOK: Final = 3
OTHER_LOOK: Final = 4
"""Fills of versions, the same on every page: of the old and the new version of the newest rollout,
of fresh copies of the old one, and of further versions."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitShare:
    """Part of the bar, in percent; `look` is its fill, 1 to 4."""

    name: str
    weight: int
    start: int
    look: int


def shares_of(parts: Sequence[tuple[str, int, int]]) -> list[SplitShare]:
    """Return the parts (name, weight and look), one after the other."""
    shares, start = [], 0
    for name, weight, look in parts:
        shares.append(SplitShare(name=name, weight=weight, start=start, look=look))
        start += weight
    return shares


_LISTED: Final = 100
_EVENTS: Final = 200
_NOT_FOUND: Final = 404
LABELS: Final = {
    Verb.PROMOTE: "Promote",
    Verb.PAUSE: "Pause",
    Verb.RESUME: "Resume",
    Verb.ABORT: "Abort",
    Verb.ROLLBACK: "Roll back",
}
CONSEQUENCES: Final = {
    Verb.PROMOTE: (
        "All requests go to version {to} as soon as its replicas are ready. The "
        "remaining steps are skipped, and metrics are not evaluated."
    ),
    Verb.PAUSE: (
        "The split does not change, with version {to} at {weight} %, until the rollout "
        "is resumed. A version that is worse, or cannot run, is still rolled back."
    ),
    Verb.RESUME: (
        "The rollout continues where it was paused, and approves a step that waits for approval."
    ),
    Verb.ABORT: (
        "All requests go back to version {from_} immediately. The rollout ends without a verdict."
    ),
    Verb.ROLLBACK: (
        "All requests go back to version {from_} immediately. Version {to} of the spec "
        "stays inactive until the spec changes."
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricEvidence:
    """Metric with its charts: the current one, None without values, and those over time."""

    metric: MetricStatus
    interval: IntervalMark | None
    charts: Sequence[SequenceChart]


async def rollouts(request: PageRequest) -> PageView:
    """Return the page of all rollouts, newest first."""
    listed = await request.visitor.get("/api/v1/rollouts", RolloutList, {"limit": _LISTED})
    under_way = [rollout for rollout in listed.rollouts if not rollout.over]
    return PageView(
        template="rollouts.html",
        title="Rollouts",
        section="rollouts",
        announcement=f"{len(under_way)} active rollouts.",
        values={"rollouts": listed.rollouts},
    )


async def rollout(request: PageRequest) -> PageView:
    """Return the page of one rollout with its evidence."""
    status = await _status(request)
    parameters: Params = {"endpoint": status.endpoint, "limit": _EVENTS}
    events = await request.visitor.get("/api/v1/events", EventList, parameters)
    path = f"/api/v1/rollouts/{status.id}/evidence"
    evidence = await request.visitor.get(path, RolloutEvidence)
    metrics = status.verdict.metrics if status.verdict is not None else ()
    phase = status.phase.replace("_", " ")
    return PageView(
        template="rollout.html",
        title=f"Rollout {status.id}",
        section="rollouts",
        announcement=(
            f"Rollout {status.id} is {phase}, version {status.to_version} at {status.weight} %."
        ),
        values={
            "rollout": status,
            "shares": split_of(status),
            "metrics": [
                MetricEvidence(
                    metric=metric,
                    interval=interval_of(metric),
                    charts=charts_of(metric, evidence),
                )
                for metric in metrics
            ],
            "events": [event for event in reversed(events.events) if event.rollout == status.id],
            "verbs": verbs_of(status) if may_operate(request.caller, status.endpoint) else [],
            "labels": LABELS,
        },
    )


async def confirm(request: PageRequest) -> PageView:
    """Return the confirmation page of a command."""
    status = await _status(request)
    verb = verb_of(request.names["verb"])
    text = CONSEQUENCES[verb].format(
        to=status.to_version, from_=status.from_version, weight=status.weight
    )
    reason = FormInput(
        name="reason",
        label="Reason, stored in the history (optional)",
        value=request.form.get("reason", ""),
    )
    return confirmation(
        request,
        title=f"{LABELS[verb]} rollout {status.id} of {status.endpoint}?",
        consequence=text,
        label=LABELS[verb],
        crumbs=[(f"/rollouts/{status.id}", f"Rollout {status.id}")],
        section="rollouts",
        inputs=[reason],
        look="danger" if verb in {Verb.ROLLBACK, Verb.ABORT} else "primary",
        shares=split_of(status),
    )


async def send_command(request: PageRequest) -> str:
    """Send a command to a rollout; return the page to show next.

    Raises:
        RefusedError: The API returns an error.
    """
    status = await _status(request)
    verb = verb_of(request.names["verb"])
    path = f"/api/v1/endpoints/{status.endpoint}/rollout/{verb}"
    await request.change(path, {"reason": request.form.get("reason", "")})
    return f"/rollouts/{status.id}"


def verb_of(text: str) -> Verb:
    """Return the verb of this name.

    Raises:
        RefusedError: The command does not exist.
    """
    try:
        return Verb(text)
    except ValueError:
        raise RefusedError.of(_NOT_FOUND, f"unknown rollout action: {text[:20]!r}") from None


def verbs_of(status: RolloutStatus) -> list[Verb]:
    """Return the valid verbs of a rollout in its phase."""
    if status.phase == RolloutPhase.PROMOTED:
        return [Verb.ROLLBACK]
    if status.over:
        return []
    halt = Verb.RESUME if status.phase == RolloutPhase.PAUSED else Verb.PAUSE
    return [Verb.PROMOTE, halt, Verb.ROLLBACK, Verb.ABORT]


def split_of(status: RolloutStatus) -> list[SplitShare]:
    """Return the current shares of the requests."""
    old = 100 - status.weight - status.baseline_weight
    parts = [(f"old: version {status.from_version}", old, OLD_LOOK)]
    if status.baseline_weight:
        name = f"baseline: version {status.from_version}, fresh"
        parts.append((name, status.baseline_weight, BASELINE_LOOK))
    return shares_of([*parts, (f"new: version {status.to_version}", status.weight, NEW_LOOK)])


async def _status(request: PageRequest) -> RolloutStatus:
    return await request.visitor.get(f"/api/v1/rollouts/{request.names['rollout']}", RolloutStatus)
