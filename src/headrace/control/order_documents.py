"""How is an order written into a spec, and what does a spec say that is pinned as it is?"""

from collections.abc import Mapping
from typing import Any

from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.core import InvalidArgumentError
from headrace.core.spec import SystemSpec, is_model_path


def with_entry(
    document: Mapping[str, Any], name: str, entry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """`document` with the line of endpoint `name` replaced, added, or taken out (None)."""
    entries: list[Mapping[str, Any]] = list(document.get("endpoints", []))
    if entry is None:
        entries = [old for old in entries if old.get("name") != name]
    elif any(old.get("name") == name for old in entries):
        entries = [entry if old.get("name") == name else old for old in entries]
    else:
        entries.append(entry)
    return {"version": 1, **document, "endpoints": [dict(item) for item in entries]}


def entry_of_source(
    served: DesiredEndpoint, *, model: str, version: str, upstream: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What is to be served instead, in the words of the spec."""
    if upstream is not None:
        return {"upstream": dict(upstream), "version": version or _next_version(served)}
    if model:
        return {"model": f"{model}:{version}" if version and ":" not in model else model}
    if not version:
        raise InvalidArgumentError("name the version to roll out, or a model or an upstream")
    line = max(served.arms, key=lambda arm: arm.weight).revision
    if line.upstream is not None or is_model_path(line.model):
        message = f"'{line.model}' has no versions in the registry; name a model instead"
        raise InvalidArgumentError(message)
    return {"model": f"{line.model.partition(':')[0]}:{version}"}


def _next_version(served: DesiredEndpoint) -> str:
    return str(1 + max(int(arm.revision.version) for arm in served.arms))


def reloads_of(desired: DesiredState) -> dict[str, int]:
    """How often each endpoint was loaded anew."""
    return {e.name: max(arm.revision.reload for arm in e.arms) for e in desired.endpoints if e.arms}


def only_entry(spec: SystemSpec, name: str) -> SystemSpec:
    """`spec` with the entry of endpoint `name`, or else those that may be repositories."""
    mine = tuple(entry for entry in spec.endpoints if entry.name == name)
    others = tuple(e for e in spec.endpoints if e.model is not None and is_model_path(e.model))
    return spec.model_copy(update={"endpoints": mine or others})
