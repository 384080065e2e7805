"""What does the trail say about a change of the desired state? What was there before, and after."""

from typing import Any

from headrace.control.access.trail import Change
from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.core.redact import redact


def spec_change(
    old: DesiredState, new: DesiredState, *, action: str, actor: str, at: float
) -> Change:
    """The entry of a change: the endpoints that differ, and what differs of the rest."""
    names = list(
        dict.fromkeys([*(e.name for e in old.endpoints), *(e.name for e in new.endpoints)])
    )
    changed = [name for name in names if old.endpoint(name) != new.endpoint(name)]
    keys = {*old.spec, *new.spec} - {"endpoints"}
    differing = sorted(key for key in keys if old.spec.get(key) != new.spec.get(key))
    return Change(
        at=at,
        actor=actor,
        action=action,
        object=", ".join(changed) if action != "apply" else "spec",
        before=_told(old, changed, differing),
        after=_told(new, changed, differing),
    )


def _told(state: DesiredState, names: list[Any], keys: list[str]) -> Any:  # noqa: ANN401  # JSON
    endpoints = {name: _endpoint(state, name) for name in names}
    document = {
        "generation": state.generation,
        **{key: state.spec.get(key) for key in keys},
        "endpoints": {name: one for name, one in endpoints.items() if one is not None},
    }
    return redact(document)


def _endpoint(state: DesiredState, name: str) -> dict[str, Any] | None:
    found: DesiredEndpoint | None = state.endpoint(name)
    if found is None:
        return None
    return {
        "generation": found.generation,
        "models": [arm.revision.model for arm in found.arms],
        "spec": state.entry(name),
    }
