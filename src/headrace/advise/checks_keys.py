"""Keys of callers and tokens of operators: how long they live, what they may do."""

from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from headrace.advise.check import Check, Hit
from headrace.advise.facts import Facts, Need
from headrace.advise.severity import Severity

_OLD: Final = timedelta(days=90)


def _no_expiry(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.expires is None:
            yield Hit(where=f"key {key.name}", seen=f"key '{key.name}' never expires")


def _unused(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        since = key.last_used or key.created
        if not key.tells_use or since is None or facts.now - since <= _OLD:
            continue
        used = f"was last used on {key.last_used:%Y-%m-%d}" if key.last_used else "was never used"
        yield Hit(
            where=f"key {key.name}",
            seen=f"key '{key.name}' {used}",
            fix=f"headrace keys revoke {key.name}",
        )


def _may_all(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if "infer:*" in key.scopes:
            yield Hit(where=f"key {key.name}", seen=f"key '{key.name}' has the scope `infer:*`")


def _old(facts: Facts) -> Iterator[Hit]:
    for key in facts.keys:
        if key.created is not None and facts.now - key.created > _OLD:
            days = (facts.now - key.created).days
            seen = f"key '{key.name}' is of {key.created:%Y-%m-%d}, {days} days old"
            yield Hit(where=f"key {key.name}", seen=seen)


def _endless_token(facts: Facts) -> Iterator[Hit]:
    for token in facts.tokens:
        if token.expires is None:
            yield Hit(where=f"token {token.id}", seen=f"a token of '{token.owner}' never expires")


CHECKS: Final = (
    Check(
        id="HR021",
        title="An API key never expires",
        severity=Severity.MEDIUM,
        why="A key that leaked years ago still opens the door.",
        fix="Make a new one with an end (`headrace keys create ... --expires-in 90d`), move the "
        "caller to it, revoke the old one.",
        needs=(Need.KEYS,),
        find=_no_expiry,
    ),
    Check(
        id="HR022",
        title="An API key is not used",
        severity=Severity.LOW,
        why="Nobody would miss it, and nobody would notice that it is used by somebody else.",
        fix="Revoke it.",
        needs=(Need.KEYS,),
        find=_unused,
    ),
    Check(
        id="HR023",
        title="An API key may call every endpoint",
        severity=Severity.LOW,
        why="What leaks with it is everything, endpoints of the future included.",
        fix="Make one for each caller, with `infer:ENDPOINT` scopes.",
        needs=(Need.KEYS,),
        find=_may_all,
    ),
    Check(
        id="HR024",
        title="An API key was not changed for 90 days",
        severity=Severity.LOW,
        why="The longer a key lives, the more copies of it lie in logs, scripts and histories.",
        fix="Make a new one, move the caller to it, revoke the old one.",
        needs=(Need.KEYS,),
        find=_old,
    ),
    Check(
        id="HR025",
        title="A token of the management API never expires",
        severity=Severity.MEDIUM,
        why="Whoever finds it in an old pipeline changes what is served.",
        fix="Make a new one with an end, move the program to it, revoke the old one.",
        needs=(Need.TOKENS,),
        find=_endless_token,
    ),
)
