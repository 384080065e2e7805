"""What does somebody see and change who has a role for some endpoints only? Those, and no more."""

from dataclasses import replace
from typing import Any

from headrace.control.access.roles import Caller, Role
from headrace.control.differences import Diff
from headrace.control.status import Status


def status_seen_by(caller: Caller, status: Status) -> Status:
    """The system, with the caller's endpoints; feature views, streams and jobs are of all."""
    mine = caller.endpoints(Role.VIEWER)
    if mine is None:
        return status
    endpoints = tuple(endpoint for endpoint in status.endpoints if endpoint.name in mine)
    ready = status.gateway.ready and all(endpoint.ready for endpoint in endpoints)
    return replace(
        status,
        ready=ready,
        endpoints=endpoints,
        features=(),
        feature_skew=(),
        streams=(),
        jobs=(),
        faults=tuple(fault for fault in status.faults if fault.endpoint in mine),
    )


def spec_seen_by(caller: Caller, document: dict[str, Any]) -> dict[str, Any]:
    """The spec, with the caller's endpoints and nothing that concerns all."""
    mine = caller.endpoints(Role.VIEWER)
    if mine is None:
        return document
    entries = [entry for entry in document.get("endpoints", []) if entry.get("name") in mine]
    return {"version": document.get("version", 1), "endpoints": entries}


def diff_seen_by(caller: Caller, diff: Diff) -> Diff:
    """What would change of the caller's endpoints."""
    mine = caller.endpoints(Role.VIEWER)
    if mine is None:
        return diff
    starts = tuple(f"endpoint '{name}'" for name in mine)
    return Diff(
        changes=[line for line in diff.changes if line.startswith(starts)],
        endpoints={name: one for name, one in diff.endpoints.items() if name in mine},
    )
