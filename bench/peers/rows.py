"""One line of the results: a server under a load, with each figure in every round."""

import math
import statistics
from collections.abc import Sequence

import msgspec

from bench.windows import Rounds


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """What one server did under one load.

    `figures`: a value a round; rows of one suite, model and load have the same rounds, so ratios
    are taken within a round. `noisy`: windows in which strangers used the machine.
    """

    suite: str
    model: str
    load: str
    server: str
    figures: dict[str, list[float]]
    noisy: int = 0

    @property
    def key(self) -> tuple[str, str, str, str]:
        """What makes two rows the same."""
        return self.suite, self.model, self.load, self.server

    def median(self, key: str) -> float:
        """The middle of a figure's values; not a number where it was not taken."""
        values = self.figures.get(key)
        return statistics.median(values) if values else math.nan


def rows_of(suite: str, model: str, load: str, rounds: Rounds) -> list[Row]:
    """A row for each arm, of the rounds in which all were quiet; of all, if none was."""
    count = min(map(len, rounds.values()))
    quiet = [at for at in range(count) if all(arm[at].is_quiet for arm in rounds.values())]
    chosen = quiet or list(range(count))
    rows = []
    for server, windows in rounds.items():
        taken = [_with_costs(dict(windows[at].figures)) for at in chosen]
        keys = sorted(set.intersection(*(set(one) for one in taken)))
        rows.append(
            Row(
                suite=suite,
                model=model,
                load=load,
                server=server,
                figures={key: [float(one[key]) for one in taken] for key in keys},
                noisy=sum(not window.is_quiet for window in windows),
            )
        )
    return rows


def find(rows: Sequence[Row], *, suite: str, model: str, load: str, server: str) -> Row | None:
    """That row, None if it was not measured."""
    wanted = (suite, model, load, server)
    return next(
        (one for one in rows if (one.suite, one.model, one.load, one.server) == wanted), None
    )


def merged(old: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """All rows; where both have one of the same server under the same load, the new one."""
    return list({row.key: row for row in (*old, *new)}.values())


def ratios(row: Row, base: Row, key: str) -> list[float]:
    """How many times the figure of `base`, round by round; where both have it and base is not 0."""
    pairs = zip(row.figures.get(key, ()), base.figures.get(key, ()), strict=False)
    return [mine / theirs for mine, theirs in pairs if theirs]


def _with_costs(figures: dict[str, float]) -> dict[str, float]:
    """With processor seconds per 1,000 good answers, where both were counted."""
    answered = figures.get("requests", figures.get("good", 0))
    if answered and "cpu_s" in figures:
        figures["cpu_s_per_1000"] = 1000 * figures["cpu_s"] / answered
    return figures
