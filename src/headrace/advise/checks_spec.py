"""The spec file itself: what it names, what it gives away."""

import re
from collections.abc import Iterator
from typing import Final

from headrace.advise.check import Check, Hit
from headrace.advise.facts import Facts, Need
from headrace.advise.look import files_of, mode_hit
from headrace.advise.severity import Severity

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
