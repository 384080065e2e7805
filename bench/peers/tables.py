"""Results as tables: one for a terminal while it runs, one a suite for the page."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench.peers.rows import Row, find, ratios
from bench.peers.running import HEADRACE
from bench.peers.stats import Interval, interval, ratio_interval
from bench.peers.store import Part
from bench.results import Table


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A figure in a table: `scale` brings it to the unit in `heading`."""

    key: str
    heading: str
    scale: float = 1.0
    digits: int = 0

    def cell(self, row: Row | None) -> str:
        """A mean and its interval; a dash where it was not taken."""
        values = row.figures.get(self.key) if row else None
        if not values:
            return "-"
        scaled = [self.scale * value for value in values]
        # What cannot be 0 is no less than nothing either.
        found = ratio_interval(scaled) if min(scaled) > 0 else interval(scaled)
        return written(found, self.digits)


def written(of: Interval, digits: int) -> str:
    """`12 [10 to 14]`, or `12` where one value has no interval."""
    mean = f"{of.mean:,.{digits}f}"
    if math.isnan(of.low):
        return mean
    return f"{mean} [{of.low:,.{digits}f} to {of.high:,.{digits}f}]"


MAX_LAG: Final = 0.2
"""Share of a p99 that may be the generator's."""

RPS: Final = Column(key="rps", heading="requests/s")
CALLS: Final = Column(key="rps", heading="calls/s")
CPU: Final = Column(key="cpu_s_per_1000", heading="CPU s/1,000", digits=3)
P50_US: Final = Column(key="p50_us", heading="p50 us")
P99_US: Final = Column(key="p99_us", heading="p99 us")
MEAN_US: Final = Column(key="mean_us", heading="mean us")
FAILED: Final = Column(key="failed_ratio", heading="failed %", scale=100, digits=2)
RATE: Final = Column(key="rate", heading="sent/s")
GOODPUT: Final = Column(key="goodput", heading="in time/s", digits=1)
HELD: Final = Column(key="goodput", heading="held/s", digits=1)
IN_TIME: Final = Column(key="in_time_ratio", heading="in time %", scale=100, digits=1)
LAG: Final = Column(key="lag_p99_s", heading="generator late, p99 ms", scale=1e3, digits=2)
REFUSED: Final = Column(key="refused_p99_s", heading="refused within, p99 ms", scale=1e3, digits=1)
RECOVERY: Final = Column(key="recovery_s", heading="late for, s", digits=2)


def _ms(key: str, name: str) -> Column:
    return Column(key=key, heading=f"{name} ms", scale=1e3, digits=2)


P50, P95, P99 = _ms("p50_s", "p50"), _ms("p95_s", "p95"), _ms("p99_s", "p99")
P999: Final = _ms("p999_s", "p99.9")

COLUMNS: Final[Mapping[str, Sequence[Column]]] = {
    "saturation": (RPS, P50_US, P99_US, CPU, FAILED),
    "latency": (RATE, P50, P95, P99, P999, LAG),
    "goodput": (HELD, P99, IN_TIME, LAG),
    "burst": (IN_TIME, P50, P99, RECOVERY, RATE),
    "overload": (GOODPUT, RATE, IN_TIME, P99, REFUSED, LAG),
    "image": (RPS, P50_US, P99_US, CPU),
    "cost": (
        Column(key="first_answer_s", heading="first answer s", digits=2),
        Column(key="idle_pss_mib", heading="idle MiB, proportional"),
        Column(key="idle_rss_mib", heading="idle MiB, resident"),
        Column(key="pss_mib", heading="after load MiB, proportional"),
        Column(key="environment_mb", heading="environment MB"),
        Column(key="idle_cores", heading="idle cores", digits=2),
    ),
    "gateway": (RPS, P50_US, P99_US),
    "grpc": (CALLS, MEAN_US, CPU),
    "bare": (RPS, P50_US),
    "floor": (HELD, P99),
    "neighbour": (P50, P99, LAG),
    "many": (P50_US, P99_US, RPS),
}
"""What is shown of each suite."""
COMPARED: Final[Mapping[str, str]] = {"latency": "p99_s"}
"""The figure whose ratio stands last in a line, where it is not the first."""


def terminal(rows: Sequence[Row]) -> str:
    """What a step measured: a table for each suite and load."""
    parts = []
    for (suite, model, load), group in grouped(rows).items():
        columns = COLUMNS[suite]
        table = Table(
            headings=["server", *[column.heading for column in columns]],
            rows=[[row.server, *[column.cell(row) for column in columns]] for row in group],
        )
        noisy = sum(row.noisy for row in group)
        parts.append(f"{suite}, {model}, {load}\n{table}")
        if noisy:
            parts.append(f"NOISY {noisy} windows had foreign load")
        parts += [text for row in group if (text := late(row))]
    return "\n".join(parts)


def late(row: Row) -> str:
    """Says so where the generator's own lag is much of what was measured; else empty."""
    lag, tail = row.median("lag_p99_s"), row.median("p99_s")
    if not lag > MAX_LAG * tail:
        return ""
    return (
        f"LATE the generator's lag, {1e3 * lag:.1f} ms, is {100 * lag / tail:.0f} % of the p99 "
        f"({row.server}): the figure is a ceiling"
        if tail
        else f"LATE the generator's lag is {1e3 * lag:.1f} ms, and {row.server} answered nothing"
    )


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str, str], list[Row]]:
    """Rows that were measured in turn, by suite, model and load."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.suite, row.model, row.load), []).append(row)
    return groups


def page_tables(parts: Sequence[Part], suite: str) -> Iterator[tuple[str, str]]:
    """A heading and a Markdown table for each model and load of a suite that pairs ask.

    A line a peer: its figure, ours in the same rounds, and how many times that is.
    """
    rows = [row for part in parts for row in part.rows if row.suite == suite]
    for _, model, load in grouped(rows):
        lines = [_line(part, suite, model, load) for part in parts]
        known = [line for line in lines if line]
        columns = COLUMNS[suite]
        headings = ["against", *[f"{column.heading}: theirs / ours" for column in columns]]
        what = next(column for column in columns if column.key == _compared(suite)).heading
        yield f"{model}, {load}", markdown([*headings, f"{what}: ours, times theirs"], known)


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    rule = "|---" * len(headings) + "|"
    return "\n".join([_bar(headings), rule, *map(_bar, rows)])


def _bar(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _compared(suite: str) -> str:
    return COMPARED.get(suite, COLUMNS[suite][0].key)


def _line(part: Part, suite: str, model: str, load: str) -> list[str]:
    def row(server: str) -> Row | None:
        return find(part.rows, suite=suite, model=model, load=load, server=server)

    theirs, ours = row(part.name), row(HEADRACE)
    if theirs is None:
        return []
    columns = COLUMNS[suite]
    cells = [f"{_mean(column, theirs)} / {_mean(column, ours)}" for column in columns]
    times = ratios(ours, theirs, _compared(suite)) if ours else []
    positive = [value for value in times if value > 0]
    return [part.title, *cells, written(ratio_interval(positive), 2) if positive else "-"]


def _mean(column: Column, row: Row | None) -> str:
    values = row.figures.get(column.key) if row else None
    if not values:
        return "-"
    return f"{column.scale * sum(values) / len(values):,.{column.digits}f}"
