"""Differences between two desired states, as text for callers and for the audit log."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from headrace.control.model.audit_log import AuditEntry
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState
from headrace.core.redact import redact
from headrace.core.spec.rollout import RolloutSpec

_REPORTED_SEPARATELY: Final = {"version", "endpoints", "pools", "streams", "gateway", "budget"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRollout:
    """A rollout that a change starts."""

    source: DesiredEndpoint
    """What the endpoint serves before."""
    target: DesiredEndpoint
    settings: RolloutSpec

    def __str__(self) -> str:
        """Return the line of this rollout in a list of changes."""
        arm = self.target.arms[0]
        kind = _ROLLOUTS[self.settings.__struct_config__.tag]
        before = " and ".join(former.key for former in self.source.arms)
        return f"starts {kind} from version {before} to {arm.key} ({arm.revision.model})"


_ROLLOUTS: Final[Mapping[object, str]] = {
    "canary": "a canary",
    "blue-green": "a blue-green rollout",
    "ab": "an A/B test",
    "shadow": "a shadow rollout",
}


def changes_between(
    old: DesiredState, new: DesiredState, rollouts: Iterable[PlannedRollout] = ()
) -> list[str]:
    """Return one line per difference, empty if the states are equal.

    Args:
        rollouts: The rollouts that lead from `old` to `new`.
    """
    before = {endpoint.name: endpoint for endpoint in old.endpoints}
    planned = {rollout.target.name: rollout for rollout in rollouts}
    after = {endpoint.name: endpoint for endpoint in new.endpoints}
    lines = [f"endpoint '{name}' removed" for name in before if name not in after]
    if old.generation and old.spec.get("gateway") != new.spec.get("gateway"):
        lines.append("gateway settings changed; they hold from the next start of the system on")
    if old.generation and old.spec.get("budget") != new.spec.get("budget"):
        lines.append("the budget of all replicas changed")
    lines += [
        f"{key} changed"
        for key in sorted((old.spec.keys() | new.spec.keys()) - _REPORTED_SEPARATELY)
        if old.generation and old.spec.get(key) != new.spec.get(key)
    ]
    lines += _listed("pool", old.pools, new.pools)
    lines += _listed(
        "stream",
        old.streams,
        new.streams,
        added=lambda stream: f": {stream.way}",
        changed="changed; its workers are replaced one by one",
    )
    # Only alerts read these fields; the other SLO fields are listed with the endpoint's settings.
    old_slos, new_slos = _slos(old), _slos(new)
    lines += [
        f"endpoint '{name}': slo changed"
        for name in old_slos
        if name in new_slos and old_slos[name] != new_slos[name]
    ]
    for name, endpoint in after.items():
        previous = before.get(name)
        if previous is None:
            arms = ", ".join(f"version {_arm(arm)}" for arm in endpoint.arms)
            lines.append(f"endpoint '{name}' added: {arms}")
        else:
            differing = _endpoint(previous, endpoint, planned.get(name))
            if not differing:
                was, becomes = old.entry(name) or {}, new.entry(name) or {}
                keys = sorted(was.keys() | becomes.keys())
                differing = [f"{key} changed" for key in keys if was.get(key) != becomes.get(key)]
            lines += [f"endpoint '{name}': {line}" for line in differing]
    return lines


def _endpoint(
    old: DesiredEndpoint, new: DesiredEndpoint, rollout: PlannedRollout | None
) -> list[str]:
    before = {arm.revision.version: arm for arm in old.arms}
    after = {arm.revision.version: arm for arm in new.arms}
    if rollout is not None:
        before = after = {}
    lines = [] if rollout is None else [str(rollout)]
    lines += [f"version {version} removed" for version in before if version not in after]
    for version, arm in after.items():
        previous = before.get(version)
        if previous is None:
            lines.append(f"version {_arm(arm)} added")
        else:
            lines += [f"version {version}: {line}" for line in _arm_changes(previous, arm)]
    if old.timeout_s != new.timeout_s:
        lines.append(f"timeout_s {_display(old.timeout_s)} becomes {_display(new.timeout_s)}")
    for name in _SETTINGS:
        was, becomes = getattr(old, name), getattr(new, name)
        if was != becomes:
            verb = "added" if was is None else "removed" if becomes is None else "changed"
            is_switch = isinstance(becomes, bool)
            lines.append(
                f"{name} becomes {str(becomes).lower()}" if is_switch else f"{name} {verb}"
            )
    return lines


_SETTINGS: Final = (
    "sticky",
    "paused",
    "fallback",
    "rollout",
    "autoscale",
    "slo_latency_s",
    "access",
    "aliases",
    "limits",
    "request_log",
    "payload_log",
    "drift",
    "example",
)


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_T = TypeVar("_T", bound=_Named)


def _listed(
    kind: str,
    old: Iterable[_T],
    new: Iterable[_T],
    *,
    added: Callable[[_T], str] = lambda _: "",
    changed: str = "changed",
) -> list[str]:
    before = {item.name: item for item in old}
    after = {item.name: item for item in new}
    lines = [f"{kind} '{name}' removed" for name in before if name not in after]
    for name, item in after.items():
        if name not in before:
            lines.append(f"{kind} '{name}' added{added(item)}")
        elif before[name] != item:
            lines.append(f"{kind} '{name}' {changed}")
    return lines


def _slos(state: DesiredState) -> dict[str, Any]:
    return {
        entry["name"]: {k: v for k, v in (entry.get("slo") or {}).items() if k != "latency_s"}
        for entry in state.spec.get("endpoints", ())
    }


def _arm_changes(old: DesiredArm, new: DesiredArm) -> list[str]:
    lines = []
    if old.weight != new.weight:
        lines.append(f"weight {old.weight} becomes {new.weight}")
    if old.replicas != new.replicas:
        lines.append(f"replicas {old.replicas} becomes {new.replicas}")
    if old.revision.id != new.revision.id:
        lines.append("new revision, its replicas are replaced")
    elif old.revision != new.revision:
        lines.append("the same under other paths or names, its replicas go on")
    return lines


def _arm(arm: DesiredArm) -> str:
    if arm.revision.upstream is not None:
        return f"{arm.revision.version} ({arm.revision.model}, weight {arm.weight})"
    copies = f"{arm.replicas} replica{'s' if arm.replicas > 1 else ''}"
    return f"{arm.revision.version} ({arm.revision.model}, weight {arm.weight}, {copies})"


def _display(timeout_s: float | None) -> str:
    return "none" if timeout_s is None else f"{timeout_s:g}"


def spec_change(
    old: DesiredState, new: DesiredState, *, action: str, actor: str, timestamp: float
) -> AuditEntry:
    """Return the audit entry of a change: the endpoints that differ, and other changed sections."""
    names = list(
        dict.fromkeys([*(e.name for e in old.endpoints), *(e.name for e in new.endpoints)])
    )
    changed = [name for name in names if old.endpoint(name) != new.endpoint(name)]
    keys = {*old.spec, *new.spec} - {"endpoints"}
    differing = sorted(key for key in keys if old.spec.get(key) != new.spec.get(key))
    return AuditEntry(
        at=timestamp,
        actor=actor,
        action=action,
        object=", ".join(changed) if action != "apply" else "spec",
        before=_audit_facts(old, changed, differing),
        after=_audit_facts(new, changed, differing),
    )


def _audit_facts(state: DesiredState, names: list[Any], keys: list[str]) -> Any:  # noqa: ANN401  # JSON
    endpoints = {name: _endpoint_facts(state, name) for name in names}
    document = {
        "generation": state.generation,
        **{key: state.spec.get(key) for key in keys},
        "endpoints": {name: facts for name, facts in endpoints.items() if facts is not None},
    }
    return redact(document)


def _endpoint_facts(state: DesiredState, name: str) -> dict[str, Any] | None:
    endpoint: DesiredEndpoint | None = state.endpoint(name)
    if endpoint is None:
        return None
    return {
        "generation": endpoint.generation,
        "models": [arm.revision.model for arm in endpoint.arms],
        "spec": state.entry(name),
    }
