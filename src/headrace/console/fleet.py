"""Is everything well? All endpoints at a glance; on an empty system what to do first."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from headrace.console.documents import AlertList, Overview, OverviewRow
from headrace.console.view import Question, View

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
_MOST_PAGES: Final = 10_000
_MOST_TEXT: Final = 100
_TROUBLES: Final = ("failing", "warning")


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where in a long list this page is."""

    page: int
    count: int
    first: int
    last: int
    total: int


async def fleet(question: Question) -> View:
    """The start page."""
    search = question.query.get("search", "").strip()[:_MOST_TEXT]
    sort = question.word("sort", *SORTS)
    page = question.number("page", least=1, most=_MOST_PAGES, usual=1)
    asked: Params = {"search": search, "sort": sort, "page": page, "size": _SIZE}
    found = await question.visitor.get("/api/v1/overview", Overview, asked)
    alerts = await question.visitor.find("/api/v1/alerts", AlertList)
    firing = [a for a in (alerts or AlertList()).alerts if a.state == "firing"]
    troubled = [row for row in found.endpoints if row.state in _TROUBLES]
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
            "pages": _pages(found, page),
            "firing": firing,
            "troubled": troubled,
            "is_empty": found.total == 0 and not search,
        },
    )


def _pages(found: Overview, page: int) -> Pages:
    count = max(-(-found.total // _SIZE), 1)
    first = (page - 1) * _SIZE + 1 if found.endpoints else 0
    return Pages(
        page=page,
        count=count,
        first=first,
        last=first + len(found.endpoints) - 1 if found.endpoints else 0,
        total=found.total,
    )


def _said(found: Overview, troubled: list[OverviewRow], firing: int) -> str:
    """What changed for the worse or the better, in a sentence."""
    if not found.total:
        return "No endpoint yet."
    names = ", ".join(f"{row.name} is {row.state}" for row in troubled[:5])
    alerts = f" {firing} alerts are firing." if firing else ""
    return (f"{names}." if names else "All endpoints shown are well.") + alerts
