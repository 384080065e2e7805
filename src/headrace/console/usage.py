"""Page of used tokens by model, credential and day, with their cost at the visitor's prices.

Prices are fields of the page's form, and so part of its address: nothing is stored, and a bookmark
keeps them.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple
from urllib.parse import urlencode

from headrace.console.view import PageRequest, PageView
from headrace.control.api.usage import Usage
from headrace.gateway.statistics import TokenUse

_DAYS: Final = {"30": "30 days", "1": "today", "7": "7 days", "90": "90 days", "365": "a year"}
_MOST_ROWS: Final = 500
_PER_PRICE: Final = 1e6
_MAX_PRICE: Final = 1e6
_MANY: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPrices:
    """Prices of an endpoint per million tokens, in any currency; None where none was entered."""

    input: float | None = None
    cached: float | None = None
    """Of input tokens from the server's cache; None for the price of other input."""
    output: float | None = None

    def cost(self, row: TokenUse) -> float | None:
        """Return the cost of tokens; None without any price."""
        if self.input is None and self.cached is None and self.output is None:
            return None
        fresh = self.input or 0.0
        cached = fresh if self.cached is None else self.cached
        total = (row.input - row.cached) * fresh + row.cached * cached
        return (total + row.output * (self.output or 0.0)) / _PER_PRICE


class UsageSum(NamedTuple):
    """Sum of rows with a common name."""

    name: str
    tokens: TokenUse
    cost: float | None


def sums_by(rows: Iterable[tuple[TokenUse, float | None]], name: str = "") -> list[UsageSum]:
    """Return the sums of rows, each with its cost, that have the same value of a field.

    They are in the order of that value; no field is one sum of all rows.
    """
    sums = {} if name else {"": UsageSum("", TokenUse(), None)}
    for row, cost in rows:
        value = getattr(row, name) if name else ""
        _, tokens, before = sums.get(value, (value, TokenUse(), None))
        total = before if cost is None else cost + (before or 0.0)
        sums[value] = UsageSum(value, tokens.plus(row), total)
    return [sums[value] for value in sorted(sums)]


def cost_text(cost: float | None) -> str:
    """Return a cost for people; `-` if it is unknown."""
    if cost is None:
        return "-"
    return f"{cost:,.2f}" if cost >= _MANY or not cost else f"{cost:.4f}"


def prices_of(query: Mapping[str, str], endpoint: str) -> TokenPrices:
    """Return the prices that were entered for an endpoint; texts that are no price are ignored."""

    def price(kind: str) -> float | None:
        try:
            value = float(query.get(f"{kind}.{endpoint}", "").replace(",", "."))
        except ValueError:
            return None
        return value if math.isfinite(value) and 0 <= value <= _MAX_PRICE else None

    return TokenPrices(input=price("input"), cached=price("cached"), output=price("output"))


async def usage(request: PageRequest) -> PageView:
    """Return the page of used tokens."""
    days = request.word("days", *_DAYS)
    today = datetime.fromtimestamp(request.now, UTC).date()
    span = {
        "first": (today - timedelta(days=int(days) - 1)).isoformat(),
        "last": today.isoformat(),
    }
    used = await request.visitor.get("/api/v1/usage", Usage, span)
    prices = {row.endpoint: prices_of(request.query, row.endpoint) for row in used.usage}
    rows = [(row, prices[row.endpoint].cost(row)) for row in used.usage]
    return PageView(
        template="usage.html",
        title="Usage",
        section="usage",
        values={
            "days": days,
            "spans": _DAYS,
            "total": sums_by(rows)[0],
            "cost_text": cost_text,
            "prices": prices,
            "by_endpoint": sums_by(rows, "endpoint"),
            "by_credential": sums_by(rows, "credential"),
            "by_day": sums_by(rows, "day")[::-1],
            "rows": rows[: -_MOST_ROWS - 1 : -1],
            "is_cut": len(rows) > _MOST_ROWS,
            "csv": f"/api/v1/usage?{urlencode({'format': 'csv', **span})}",
        },
    )
