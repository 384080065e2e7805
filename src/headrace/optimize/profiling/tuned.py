"""What does a profile fill in of a spec that leaves it open? Pure: a document in, another out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.core import FailedPreconditionError
from headrace.optimize.profiling.document import Profile
from headrace.runtimes.optimized_file import Processor

Entry = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where it will be served: the processor, and how many cores there are."""

    processor: Processor
    cores: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Filled:
    """One setting of an endpoint that a profile decided: its place in the spec, and the reason."""

    endpoint: str
    place: str
    value: object
    why: str


def model_of(entry: Entry) -> str | None:
    """The model that an endpoint's settings are tuned for: of a split, that with the most requests.

    None for somebody else's server.
    """
    versions = entry.get("versions")
    if not versions:
        model = entry.get("model")
        return model if isinstance(model, str) else None
    own = [version for version in versions if isinstance(version.get("model"), str)]
    if not own:
        return None
    found: str = max(own, key=lambda version: version.get("weight", 0))["model"]
    return found


def fitting(
    profiles: Sequence[Profile], *, model: str, machine: Machine | None, command: str
) -> Profile:
    """The newest profile of a model that holds for a machine.

    Args:
        profiles: All that there are of this model.
        model: What people call it.
        machine: None where it cannot be known: the newest profile of all is taken.
        command: What would make a profile.

    Raises:
        FailedPreconditionError: There is none, or none of such a machine.
    """
    if not profiles:
        raise FailedPreconditionError(f"there is no profile of {model}; make one with: {command}")
    newest = sorted(profiles, key=lambda profile: profile.at, reverse=True)
    if machine is None:
        return newest[0]
    for profile in newest:
        alike = profile.processor.features == machine.processor.features
        if alike and profile.cores <= machine.cores:
            return profile
    other = newest[0]
    if other.processor.features == machine.processor.features:
        msg = (
            f"the profile of {model} is for {other.cores} cores, and this machine has "
            f"{machine.cores}; make one with: {command}"
        )
        raise FailedPreconditionError(msg)
    theirs, ours = set(other.processor.features), set(machine.processor.features)
    differ = ", ".join(
        [f"no {name} here" for name in sorted(theirs - ours)]
        + [f"no {name} there" for name in sorted(ours - theirs)]
    )
    msg = (
        f"the profile of {model} is of another processor ({other.processor.name}; {differ}), whose "
        f"figures do not hold here; make one with: {command}"
    )
    raise FailedPreconditionError(msg)


def fill(
    entry: Entry, profile: Profile, *, cores: int | None
) -> tuple[dict[str, Any], list[Filled]]:
    """An endpoint's part of a spec, with what it leaves open filled in; what it says stays.

    Args:
        cores: Of the machine; None where that is not known: the number of copies is left alone.
    """
    recommended = profile.recommendation
    reasons = {reason.name: reason.why for reason in profile.recommendation.reasons}
    batching = dict(entry.get("batching") or {})
    wanted: dict[str, Any] = {
        "max_batch_size": recommended.max_batch_size,
        "max_concurrent_runs": recommended.max_concurrent_runs,
        "max_queue_delay_s": recommended.max_queue_delay_s,
    }
    if not entry.get("pool"):  # a pool's processes share their threads
        wanted["intra_op_threads"] = recommended.intra_op_threads
    filled = []
    for name, value in wanted.items():
        if name not in batching:
            batching[name] = value
            filled.append(_filled(entry, f"batching.{name}", value, reasons.get(name, "")))
    padding = recommended.padding
    if padding is not None and "padding" not in batching:
        batching["padding"] = {
            "axis": padding.axis,
            "values": dict(padding.values),
            "max_ratio": padding.max_ratio,
        }
        why = reasons.get("padding.max_ratio", "")
        filled.append(_filled(entry, "batching.padding.max_ratio", padding.max_ratio, why))
    result = {**entry, "batching": batching}
    copies = recommended.replicas
    if copies is not None and cores is not None and _may_set_copies(entry):
        copies = min(copies, max(1, cores // profile.cores))
        result["replicas"] = copies
        filled.append(_filled(entry, "replicas", copies, reasons.get("replicas", "")))
    return result, filled


def _may_set_copies(entry: Entry) -> bool:
    """Whether nothing else says how many copies there are: a split, an autoscaler, a pool."""
    return not any(entry.get(key) for key in ("replicas", "versions", "autoscale", "pool"))


def _filled(entry: Entry, place: str, value: object, why: str) -> Filled:
    return Filled(endpoint=str(entry.get("name", "")), place=place, value=value, why=why)
