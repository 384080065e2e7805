"""How much may come."""

from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit
from headrace.advise.facts import Facts, Need
from headrace.advise.look import endpoints
from headrace.advise.severity import Severity
from headrace.core.spec_access import LimitSpec

_LARGE_BODY_BYTES: Final = 256 << 20
_LONG_QUEUE: Final = 10_000
_NOTHING: Final = LimitSpec()
_LIMITS: Final = """\
limits:
  requests_per_s: 200
  max_concurrent: 64
  per_caller: {requests_per_s: 50}"""


def _none(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        limits = endpoint.limits
        if limits.total == _NOTHING and limits.per_caller == _NOTHING:
            seen = f"endpoint '{endpoint.name}' has no `limits`"
            yield Hit(where=f"{place}.limits", seen=seen, fix=_LIMITS)


def _none_per_caller(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        limits = endpoint.limits
        if limits.total != _NOTHING and limits.per_caller == _NOTHING:
            yield Hit(
                where=f"{place}.limits.per_caller",
                seen=f"endpoint '{endpoint.name}' limits all callers together only",
            )


def _large_body(facts: Facts) -> Iterator[Hit]:
    places = [("gateway.max_body_bytes", facts.spec.gateway.max_body_bytes)]
    places += [
        (f"{place}.limits.max_body_bytes", endpoint.limits.max_body_bytes or 0)
        for place, endpoint in endpoints(facts.spec)
    ]
    for where, size in places:
        if size > _LARGE_BODY_BYTES:
            yield Hit(where=where, seen=f"{size} bytes ({size / (1 << 20):.0f} MiB)")


def _no_timeout(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        if endpoint.timeout_s is None:
            seen = f"endpoint '{endpoint.name}' has `timeout_s: null`"
            yield Hit(where=f"{place}.timeout_s", seen=seen)


def _long_queue(facts: Facts) -> Iterator[Hit]:
    for place, endpoint in endpoints(facts.spec):
        size = endpoint.batching.max_queue_size
        if size > _LONG_QUEUE:
            yield Hit(
                where=f"{place}.batching.max_queue_size",
                seen=f"endpoint '{endpoint.name}' lets {size} requests wait in each replica",
            )


CHECKS: Final = (
    Check(
        id="HR201",
        title="An endpoint takes any number of requests",
        severity=Severity.MEDIUM,
        why="One caller in a loop takes it from everybody else.",
        fix="Give it `limits`.",
        needs=(Need.SPEC,),
        find=_none,
    ),
    Check(
        id="HR202",
        title="One caller may use up an endpoint's limit",
        severity=Severity.LOW,
        why="The limit then protects the model, and not the other callers.",
        fix="per_caller: {requests_per_s: 50}",
        needs=(Need.SPEC,),
        find=_none_per_caller,
    ),
    Check(
        id="HR203",
        title="Requests may be very large",
        severity=Severity.MEDIUM,
        why="Each one is held in memory, by gateway and replica: a few at once exhaust it.",
        fix="max_body_bytes: 67108864",
        needs=(Need.SPEC,),
        find=_large_body,
    ),
    Check(
        id="HR204",
        title="Requests may wait for ever",
        severity=Severity.MEDIUM,
        why="Callers that hang hold their place, until there is none left.",
        fix="timeout_s: 30",
        needs=(Need.SPEC,),
        find=_no_timeout,
    ),
    Check(
        id="HR205",
        title="A queue is as good as unbounded",
        severity=Severity.MEDIUM,
        why="Under overload everybody waits for answers that come too late, instead of a 429.",
        fix="max_queue_size: 128",
        needs=(Need.SPEC,),
        find=_long_queue,
    ),
)
