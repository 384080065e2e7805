"""Is everything well? All endpoints at a glance; on an empty system what to do first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.console.jobs import is_troubled
from headrace.console.paging import MOST_PAGES, MOST_TEXT, pages_of
from headrace.console.view import Question, View
from headrace.console.visitor import may_see_system
from headrace.control.api.alerts import AlertList
from headrace.control.api.history import Overview, OverviewRow
from headrace.control.api.jobs import JobList
from headrace.control.api.streams import StreamList
from headrace.control.jobs.status import JobView
from headrace.control.streams.status import StreamView

if TYPE_CHECKING:
    from headrace.console.visitor import Params

SORTS: Final = {
    "name": "name",
    "state": "state, the worst first",
    "requests_per_s": "requests",
    "error_ratio": "errors",
    "p99_s": "p99 latency",
}
_SIZE: Final = 50
_TROUBLES: Final = ("failing", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Beside:
    """What there is besides endpoints: how many, the look of their state, and it in words."""

    total: int
    state: tuple[str, str]


async def fleet(question: Question) -> View:
    """The start page."""
    search = question.query.get("search", "").strip()[:MOST_TEXT]
    sort = question.word("sort", *SORTS)
    page = question.number("page", least=1, most=MOST_PAGES, usual=1)
    asked: Params = {"search": search, "sort": sort, "page": page, "size": _SIZE}
    found = await question.visitor.get("/api/v1/overview", Overview, asked)
    alerts = await question.visitor.find("/api/v1/alerts", AlertList)
    firing = [a for a in (alerts.alerts if alerts else ()) if a.state == "firing"]
    troubled = [row for row in found.endpoints if row.state in _TROUBLES]
    streams, jobs = await _beside(question)
    return View(
        template="fleet.html",
        title="Fleet",
        section="fleet",
        say=_said(found, troubled, len(firing)),
        values={
            "rows": found.endpoints,
            "search": search,
            "sort": sort,
            "sorts": SORTS,
            "pages": pages_of(found.total, page=page, size=_SIZE, shown=len(found.endpoints)),
            "firing": firing,
            "troubled": troubled,
            "streams": beside_of(len(streams), [one for one in streams if not one.is_well]),
            "jobs": beside_of(len(jobs), [one for one in jobs if is_troubled(one)]),
            "is_empty": found.total == 0 and not search and not streams and not jobs,
        },
    )


async def _beside(question: Question) -> tuple[Sequence[StreamView], Sequence[JobView]]:
    """All streams and jobs; none for who sees some endpoints only."""
    if not may_see_system(question.caller):
        return (), ()
    streams = await question.visitor.find("/api/v1/streams", StreamList)
    jobs = await question.visitor.find("/api/v1/jobs", JobList)
    return () if streams is None else streams.streams, () if jobs is None else jobs.jobs


def beside_of(total: int, troubled: Sequence[StreamView | JobView]) -> Beside | None:
    """Streams or jobs in a word; None if there are none."""
    if not total:
        return None
    if not troubled:
        return Beside(total=total, state=("ok", "all well"))
    more = f" and {len(troubled) - 1} more" if len(troubled) > 1 else ""
    needs = "need" if more else "needs"
    return Beside(total=total, state=("warning", f"{troubled[0].name}{more} {needs} a look"))


def _said(found: Overview, troubled: list[OverviewRow], firing: int) -> str:
    """What changed for the worse or the better, in a sentence."""
    if not found.total:
        return "No endpoint yet."
    names = ", ".join(f"{row.name} is {row.state}" for row in troubled[:5])
    alerts = f" {firing} alerts are firing." if firing else ""
    return (f"{names}." if names else "All endpoints shown are well.") + alerts
