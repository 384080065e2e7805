"""What does an apply change, endpoint by endpoint?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headrace.control.aims import same_endpoint
from headrace.control.changes import changes_between
from headrace.control.desired import DesiredState
from headrace.control.wishes import names_of
from headrace.core.redact import redact


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """An endpoint's part of the spec before and after; None where there is none."""

    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Diff:
    """What an apply would change."""

    changes: list[str]
    endpoints: Mapping[str, Difference]


def diff_between(old: DesiredState, new: DesiredState) -> Diff:
    """What is other in `new`."""
    names = dict.fromkeys([*names_of(old), *names_of(new)])
    found = {
        name: Difference(before=redact(old.entry(name)), after=redact(new.entry(name)))
        for name in names
        if not same_endpoint(old.endpoint(name), new.endpoint(name))
    }
    return Diff(changes=changes_between(old, new), endpoints=found)
