"""What needs somebody, and what was done? Alerts, events and the trail of changes."""

from typing import Final

from headrace.console.view import Question, View
from headrace.control.api.access import EntryView, Trail
from headrace.control.api.alerts import AlertList
from headrace.control.api.events import EventList
from headrace.control.auth.roles import Role

_STATES: Final = ("firing", "pending", "resolved")
_SIZE: Final = 50
_EVENTS: Final = 15
_MOST: Final = 2**53


async def alerts(question: Question) -> View:
    """All alerts, the firing ones first."""
    found = await question.visitor.find("/api/v1/alerts", AlertList)
    known = () if found is None else found.alerts
    ordered = sorted(known, key=lambda one: (_rank(one.state), one.endpoint, one.name))
    firing = sum(one.state == "firing" for one in known)
    return View(
        template="alerts.html",
        title="Alerts",
        section="alerts",
        say=f"{firing} alerts are firing.",
        values={"is_recorded": found is not None, "alerts": ordered, "now": question.now},
    )


async def activity(question: Question) -> View:
    """What happened lately, and for admins who changed what."""
    events = await question.visitor.get("/api/v1/events", EventList, {"limit": _EVENTS})
    before = question.number("before", least=1, most=_MOST, usual=0)
    is_admin = question.caller.may(Role.ADMIN)
    entries = await _entries(question, before) if is_admin else []
    oldest = min((entry.id for entry in entries), default=1)
    return View(
        template="activity.html",
        title="Activity",
        section="activity",
        values={
            "events": list(reversed(events.events)),
            "entries": list(reversed(entries)),
            "is_admin": is_admin,
            "before": before,
            "older": oldest if oldest > 1 else 0,
            "now": question.now,
        },
    )


async def _entries(question: Question, before: int) -> list[EntryView]:
    """A page of the trail: the newest entries, or those right before one."""
    ask = question.visitor
    if not before:
        return list(
            (await ask.get("/api/v1/trail", Trail, {"newest": "true", "limit": _SIZE})).entries
        )
    after = max(before - 1 - _SIZE, 0)
    limit = min(_SIZE, before - 1)
    if limit < 1:
        return []
    return list((await ask.get("/api/v1/trail", Trail, {"after": after, "limit": limit})).entries)


def _rank(state: str) -> int:
    return _STATES.index(state) if state in _STATES else len(_STATES)
