"""Apply of a desired state: generation numbers, storage with rollouts, and the new target."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from headrace.control.base.journal import EventJournal
from headrace.control.desired.changes import PlannedRollout, changes_between, spec_change
from headrace.control.desired.target import TargetState, is_current
from headrace.control.model.desired import (
    DesiredEndpoint,
    DesiredState,
    ResourceOrigin,
    Source,
    same_endpoint,
)
from headrace.control.model.records import Event, RolloutRecord
from headrace.control.model.rollout_events import events_of
from headrace.control.reconcile.pools import check_frameworks
from headrace.control.state.store import Store
from headrace.core.redact import redact
from headrace.core.spec.access import unused_tiers
from headrace.core.spec.rollout import BLUE_GREEN_MAX_ERROR_RATIO, BlueGreenSpec, RolloutSpec
from headrace.rollout.machine import begin, supersede

_LOG: Final = logging.getLogger("headrace.control")
APPLY: Final = "apply"
"""Action of a change that replaces the whole desired state."""
APPLY_RESOURCES: Final = "resource.apply"
"""Action of a change of endpoints that resources of a cluster define."""
Carry = Callable[[DesiredEndpoint], DesiredEndpoint]


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """Result of an apply."""

    changes: list[str]
    generation: int
    warnings: list[str] = field(default_factory=list)
    """Settings now in force that are rarely intended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DesiredStateDraft:
    """A desired state before it is stored.

    `state` still has the old generation numbers. `reason` is for the history, `action` for the
    audit log.
    """

    state: DesiredState
    reason: str
    action: str
    actor: str
    rollout_specs: Mapping[str, RolloutSpec | None] = field(default_factory=dict)
    """Rollout plans that replace the endpoints' own `rollout`; None for an immediate change.
    """
    restart: frozenset[str] = frozenset()
    """Endpoints that get a new generation even if nothing differs."""
    notes: tuple[str, ...] = ()
    """What the state does otherwise than the spec literally says; part of the warnings."""
    carry: Mapping[str, Carry] = field(default_factory=dict)
    """Changes by endpoint that also apply to both ends of its rollout, which continues; all other
    changes supersede it.
    """
    resources: Mapping[str, ResourceOrigin] = field(default_factory=dict)
    """New origins of endpoints that come from resources of a cluster."""


async def apply_draft(
    draft: DesiredStateDraft,
    *,
    target_state: TargetState,
    store: Store,
    journal: EventJournal,
    now: float,
) -> Applied:
    """Store the draft with the rollouts that it begins and ends, then make it the target.

    Calls are serialized: the caller holds the lock of `target_state`.

    Raises:
        FailedPreconditionError: A pool cannot host all of its models.
    """
    old = target_state.desired
    check_frameworks(old.endpoints, draft.state.endpoints)
    endpoints = tuple(
        [
            msgspec.structs.replace(
                await _numbered(endpoint, draft.restart, old, store),
                spec_source=_spec_source(target_state, endpoint, draft),
                resource=draft.resources.get(endpoint.name, _resource(old, endpoint.name)),
            )
            for endpoint in draft.state.endpoints
        ]
    )
    new = msgspec.structs.replace(draft.state, generation=old.generation + 1, endpoints=endpoints)
    planned = planned_rollouts(target_state, new, draft)
    changes = changes_between(old, new, planned)
    origins = [
        (state.file, {e.name: (e.spec_source, e.resource) for e in state.endpoints})
        for state in (old, new)
    ]
    if not changes and old.generation and not draft.restart and origins[0] == origins[1]:
        return Applied(changes=[], generation=old.generation, warnings=_warnings(draft))
    restarted = {name for name in draft.restart if not any(f"'{name}'" in line for line in changes)}
    changes += [f"endpoint '{name}': {draft.reason}" for name in sorted(restarted)]
    carried = _carried(target_state, new, draft.carry)
    names = {record.endpoint for record in carried}
    outdated = [
        record
        for record in target_state.active()
        if record.endpoint not in names
        and (
            (endpoint := new.endpoint(record.endpoint)) is None or not is_current(record, endpoint)
        )
    ]
    ended = [
        msgspec.structs.replace(
            record,
            state=msgspec.structs.replace(
                supersede(record.state, reason="the endpoint was changed"), since=now
            ),
        )
        for record in outdated
    ]
    newest = await store.rollouts(limit=1)
    last = int(newest[0].id[1:]) if newest else 0
    started = [
        RolloutRecord(
            id=f"r{number}",
            endpoint=rollout.target.name,
            created=now,
            source=rollout.source,
            target=rollout.target,
            state=begin(rollout.settings, started=now),
            actor=draft.actor,
        )
        for number, rollout in enumerate(planned, last + 1)
    ]
    rollouts = await store.save(
        new,
        timestamp=now,
        reason=draft.reason,
        actor=draft.actor,
        rollouts=[*ended, *carried, *started],
        events=[
            *(
                event
                for record, after in zip(outdated, ended, strict=True)
                for event in events_of(record, after.state, now=now, actor=draft.actor)
            ),
            *(_started(record) for record in started),
            *_changed(old, new, draft, now),
        ],
        changes=[spec_change(old, new, action=draft.action, actor=draft.actor, timestamp=now)],
    )
    for change in changes:
        _LOG.info("%s", change, extra={"generation": new.generation})
    # Where one rollout replaces another, the later one belongs to the endpoint.
    target_state.set_target(desired=new, rollouts=rollouts)
    journal.notify()
    return Applied(changes=changes, generation=new.generation, warnings=_warnings(draft))


async def _numbered(
    endpoint: DesiredEndpoint, restart: frozenset[str], desired: DesiredState, store: Store
) -> DesiredEndpoint:
    """Return `endpoint` with its generation: the next one if anything differs."""
    old = desired.endpoint(endpoint.name)
    if old is not None:
        is_new = endpoint.name in restart or not same_endpoint(old, endpoint)
        return msgspec.structs.replace(endpoint, generation=old.generation + is_new)
    last = await store.history(endpoint.name, limit=1)
    return msgspec.structs.replace(endpoint, generation=last[0].generation + 1 if last else 1)


def _resource(desired: DesiredState, name: str) -> ResourceOrigin | None:
    endpoint = desired.endpoint(name)
    return None if endpoint is None else endpoint.resource


def _carried(
    target_state: TargetState, new: DesiredState, carry: Mapping[str, Carry]
) -> list[RolloutRecord]:
    """Return the rollouts of endpoints with a new generation, with both ends changed as well."""
    return [
        msgspec.structs.replace(
            record,
            source=carry[endpoint.name](record.source),
            target=carry[endpoint.name](record.target),
            carried_to=endpoint.generation,
        )
        for endpoint in new.endpoints
        if endpoint.name in carry
        and (record := target_state.rollout(endpoint.name)) is not None
        and not is_current(record, endpoint)
    ]


def planned_rollouts(
    target_state: TargetState, new: DesiredState, draft: DesiredStateDraft
) -> list[PlannedRollout]:
    """Return the rollouts that lead to `new`, the draft's state."""
    planned = []
    for target in new.endpoints:
        before = target_state.desired.endpoint(target.name)
        source = target_state.serving(target.name)
        settings = draft.rollout_specs.get(target.name, target.rollout)
        if before is None or source is None or settings is None:
            continue
        is_changed = target.name in draft.restart or not same_endpoint(before, target)
        if is_changed and can_roll(source, target):
            planned.append(PlannedRollout(source=source, target=target, settings=settings))
    return planned


def _spec_source(
    target_state: TargetState, endpoint: DesiredEndpoint, draft: DesiredStateDraft
) -> Source:
    """Return `spec_source` of an endpoint of the draft.

    An apply has set it. Another change keeps it, or sets it where it starts a rollout: applying the
    same spec again must not revert what the rollout leads to. What a resource defines is applied
    again by every scaling, so any change of its versions sets it, undo included.
    """
    before = target_state.desired.endpoint(endpoint.name)
    if draft.action in {APPLY, APPLY_RESOURCES} or before is None:
        return endpoint.spec_source
    from_spec = before.spec_source or before.source
    if endpoint.source == before.source:
        return before.spec_source
    is_rolled_out = before.resource is not None or bool(
        planned_rollouts(
            target_state, msgspec.structs.replace(draft.state, endpoints=(endpoint,)), draft
        )
    )
    return from_spec if is_rolled_out and endpoint.source != from_spec else ()


def can_roll(source: DesiredEndpoint, target: DesiredEndpoint) -> bool:
    """Whether a rollout can lead to `target`: it has one version, which is not served yet."""
    if len(target.arms) != 1 or not source.arms or target.arms[0].revision.unloadable:
        return False
    return target.arms[0].key not in {arm.key for arm in source.arms}


def _warnings(draft: DesiredStateDraft) -> list[str]:
    """Return a warning for each version that cannot be served, or that no error can stop."""
    unloadable = [
        f"endpoint '{endpoint.name}': version {arm.key} cannot be served: {arm.revision.unloadable}"
        for endpoint in draft.state.endpoints
        for arm in endpoint.arms
        if arm.revision.unloadable
    ]
    tiers = unused_tiers(draft.state.spec)
    unused = [f"tiers {tiers}"] if tiers else []
    return [*draft.notes, *unused, *unloadable] + [
        f"endpoint '{endpoint.name}': no fixed threshold (metrics.errors.max_ratio) judges errors "
        "in its blue-green rollout: a version that fails every request is promoted; leave "
        f"max_ratio out for {BLUE_GREEN_MAX_ERROR_RATIO:g}, or set one"
        for endpoint in draft.state.endpoints
        if isinstance(
            settings := draft.rollout_specs.get(endpoint.name, endpoint.rollout), BlueGreenSpec
        )
        and (settings.metrics.errors is None or settings.metrics.errors.max_ratio is None)
    ]


def names_of(state: DesiredState) -> list[str]:
    """Return the names of the endpoints."""
    return [endpoint.name for endpoint in state.endpoints]


def _started(record: RolloutRecord) -> Event:
    strategy = record.state.settings.__struct_config__.tag
    old = ", ".join(arm.key for arm in record.source.arms)
    new = record.target.arms[0].key
    return Event(
        at=record.created,
        endpoint=record.endpoint,
        kind="rollout",
        reason="Started",
        message=f"rollout {record.id} ({strategy}) from version {old} to {new}",
        generation=record.target.generation,
        rollout=record.id,
        actor=record.actor,
    )


def _changed(
    old: DesiredState, new: DesiredState, draft: DesiredStateDraft, now: float
) -> list[Event]:
    """Return an event for every endpoint whose desired state changes."""
    events = []
    for name in dict.fromkeys([*names_of(old), *names_of(new)]):
        before, after = old.endpoint(name), new.endpoint(name)
        if before and after and before.generation == after.generation:
            continue
        last = after or before
        assert last is not None
        events.append(
            Event(
                at=now,
                endpoint=name,
                kind="spec",
                reason="Removed" if after is None else "Changed" if before else "Added",
                message=draft.reason,
                generation=last.generation + (after is None),
                actor=draft.actor,
            )
        )
    return events


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An endpoint's entry in the spec before and after a change; None where it is absent."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What an apply would change."""

    changes: list[str]
    endpoints: Mapping[str, Difference]
    warnings: list[str] = field(default_factory=list)
    """The warnings of the apply."""


def diff_of(draft: DesiredStateDraft, target_state: TargetState) -> Diff:
    """Return what applying the draft would change now."""
    old, new = target_state.desired, draft.state
    names = dict.fromkeys([*names_of(old), *names_of(new)])
    differences = {
        name: Difference(before=redact(old.entry(name)), after=redact(new.entry(name)))
        for name in names
        if not same_endpoint(old.endpoint(name), new.endpoint(name))
    }
    planned = planned_rollouts(target_state, new, draft)
    return Diff(
        changes=changes_between(old, new, planned),
        endpoints=differences,
        warnings=_warnings(draft),
    )
