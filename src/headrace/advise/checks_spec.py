"""Checks of a spec: its limits and its endpoints."""

import re
from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit, endpoints, files_of, mode_hit
from headrace.advise.facts import Facts, Need, Severity
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


_LIMIT_CHECKS: Final = (
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


_WRITES: Final = 2
_SECRETS: Final = (
    ("a private key", re.compile(r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----")),
    ("a key or token of Headrace", re.compile(r"\bhr[a-z]?_[A-Za-z0-9]{4,}_[A-Za-z0-9_-]{16,}")),
    ("a token", re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*")),
    ("an AWS access key", re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b")),
    ("a GitHub token", re.compile(r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})")),
    ("a Hugging Face token", re.compile(r"\bhf_[A-Za-z0-9]{30,}")),
    ("a Slack token", re.compile(r"\bxox[abprs]-[A-Za-z0-9-]{10,}")),
    ("an API key", re.compile(r"\bsk-[A-Za-z0-9_-]{20,}")),
    ("a password in a URL", re.compile(r"://[^\s/:@'\"]{1,64}:[^\s/@'\"$]{1,128}@")),
    (
        "a password",
        re.compile(
            r"(?i)(?:pass(?:word|wd)?|secret|token|api[_-]?key|access[_-]?key)['\"]?\s*[:=]\s*"
            r"['\"]?(?![$/<.*{\[~]|null\b|true\b|false\b)[^\s'\",}\]#]{6,}"
        ),
    ),
)
"""Most particular first; a line is told once."""


def _secrets(facts: Facts) -> Iterator[Hit]:
    for piece in facts.texts:
        what = next((what for what, pattern in _SECRETS if pattern.search(piece.text)), None)
        if what is not None:
            yield Hit(where=piece.where, seen=f"looks like {what} (not shown)", line=piece.line)


def _dangling(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, *_KINDS):
        if not file.exists:
            yield Hit(where=named.place, seen=f"there is no {named.path}")


def _unreadable(facts: Facts) -> Iterator[Hit]:
    for named, file in files_of(facts, *_KINDS):
        if file.exists and file.problem:
            yield Hit(where=named.place, seen=f"{named.path} {file.problem}")


def _writable(facts: Facts) -> Iterator[Hit]:
    file = facts.spec_file
    if file is not None and file.opens(_WRITES):
        yield mode_hit(file, where=file.path, fix=f"chmod go-w {file.path}")


_KINDS: Final = ("certificate", "key", "ca", "jwks", "trusted", "model")
CHECKS: Final = (
    *_LIMIT_CHECKS,
    Check(
        id="HR701",
        title="The spec holds a secret",
        severity=Severity.CRITICAL,
        why="Spec files are committed, copied and shown by the API; comments count, too.",
        fix="Take it out, change it wherever it is used, and name a file or ${VARIABLE} instead.",
        needs=(Need.SPEC,),
        find=_secrets,
    ),
    Check(
        id="HR702",
        title="The spec names a file that is not there",
        severity=Severity.HIGH,
        why="What it should protect or serve does not start.",
        fix="Correct the path, or bring the file there.",
        needs=(Need.SPEC, Need.FILES),
        find=_dangling,
    ),
    Check(
        id="HR703",
        title="A file is not what the spec takes it for",
        severity=Severity.HIGH,
        why="The gateway refuses it, and goes on with what it had.",
        fix="Replace the file.",
        needs=(Need.SPEC, Need.FILES),
        find=_unreadable,
    ),
    Check(
        id="HR704",
        title="The spec file can be changed by others",
        severity=Severity.MEDIUM,
        why="What they write is what the next apply does.",
        fix="chmod go-w the file.",
        needs=(Need.SPEC, Need.FILES),
        find=_writable,
    ),
)
