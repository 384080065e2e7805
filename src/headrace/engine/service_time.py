"""Service time of a run and the rows worth running together, learned from runs."""

from collections.abc import Iterable
from typing import Final

from mypy_extensions import mypyc_attr

from headrace.engine.grouping import USUAL_OVERHEAD

_WEIGHT: Final = 0.2
"""Weight of a new observation in the moving average."""
_WORTH: Final = 1.05
"""A smaller batch is preferred if its time per row is within this factor of the best."""
_REFRESH: Final = 32
"""Runs between two looks at which batch size is best."""
_EXPLORE: Final = 8
"""Every so many looks twice the best size is allowed, so that a stale figure is renewed."""

_SLOWER: Final = 2.0
"""A run that takes so many times what was known may mean that the model is no longer as it was."""
_IN_A_ROW: Final = 4
"""So many of them, one after the other, do mean it."""

_Cell = tuple[int, int]


def _bucket(n: int) -> int:
    """1, 2, 3-4, 5-8, 9-16, ... are buckets 0, 1, 2, 3, 4, ..."""
    return (n - 1).bit_length() if n > 1 else 0


def _middle(bucket: int) -> float:
    """The middle of a bucket."""
    return 0.75 * (1 << bucket) if bucket > 1 else float(1 << bucket)


@mypyc_attr(allow_interpreted_subclasses=True)  # where it is compiled
class ServiceTimes:
    """Moving averages of the seconds per row of a run, by batch size and by length.

    Both are bucketed by powers of two. Where nothing was observed, the nearest bucket answers.

    A model may become slower as a whole: what it waits for is slow, or others use its cores. What
    is known of smaller batches then looks good only for being old, and a replica that believed it
    would run ever smaller batches, one size after the other, when it can afford that least. So
    these figures are dropped as soon as runs in a row are much slower than known.
    """

    def __init__(self, *, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self.slowest_row_s = 0.0
        """No row is known to be slower than this, at any batch size and length."""
        self._row_s: dict[_Cell, float] = {}
        self._limits: dict[int, int] = {}
        self._overheads: dict[int, float] = {}
        self._slower: list[tuple[_Cell, float]] = []
        self._before: dict[_Cell, float] = {}
        self._runs = 0
        self._looks = 0

    def observe(self, *, rows: int, length: int, seconds: float) -> None:
        """Learn that a batch of `rows`, padded to `length`, took `seconds`."""
        cell = (_bucket(rows), _bucket(length))
        row_s = seconds / rows
        previous_s = self._row_s.get(cell)
        average_s = row_s if previous_s is None else previous_s + _WEIGHT * (row_s - previous_s)
        self._row_s[cell] = average_s
        if average_s > self.slowest_row_s:  # noqa: PLR1730  # a third of the cost of `max`
            self.slowest_row_s = average_s
        self._runs += 1
        if self._runs >= _REFRESH or previous_s is None:
            self._runs = 0
            self._looks += 1
            self._limits.clear()
            self._overheads.clear()
            self.slowest_row_s = max(self._row_s.values())
        if previous_s is not None:
            self._compare(cell, row_s, self._before.get(cell, previous_s))

    def estimate(self, *, rows: int, length: int) -> float | None:
        """Seconds that a run of `rows` at `length` will take; None before the first observation."""
        row_s = self._known(_bucket(rows), _bucket(length))
        return None if row_s is None else row_s * rows

    def best_rows(self, length: int) -> int:
        """The batch size beyond which time per row no longer falls, at most `max_batch_size`."""
        bucket = _bucket(length)
        limit = self._limits.get(bucket)
        if limit is None:
            limit = self._limits[bucket] = self._look(bucket)
        return limit

    def overhead(self, length: int) -> float:
        """What a run at `length` costs beside its elements, in elements (rows times length).

        From the smallest and the largest batch that are known there: time per row falls as the
        run's own share of it does.
        """
        bucket = _bucket(length)
        overhead = self._overheads.get(bucket)
        if overhead is None:
            overhead = self._overheads[bucket] = self._look_at_overhead(bucket)
        return overhead

    def _look_at_overhead(self, length_bucket: int) -> float:
        row_s_by_rows = self._by_rows(length_bucket)
        if len(row_s_by_rows) < 2:  # noqa: PLR2004  # a slope needs two
            return USUAL_OVERHEAD
        few, many = min(row_s_by_rows), max(row_s_by_rows)
        few_rows, many_rows = _middle(few), _middle(many)
        run_s = (row_s_by_rows[few] - row_s_by_rows[many]) / (1 / few_rows - 1 / many_rows)
        row_s = row_s_by_rows[few] - run_s / few_rows
        if run_s <= 0 or row_s <= 0:
            return USUAL_OVERHEAD
        return run_s / row_s * _middle(length_bucket)

    def _compare(self, cell: _Cell, row_s: float, before: float) -> None:
        """Notice when runs in a row are much slower than was known `before` them."""
        if row_s <= before * _SLOWER:
            if self._slower:
                self._slower, self._before = [], {}
            return
        self._before[cell] = before
        self._slower.append((cell, row_s))
        if len(self._slower) == _IN_A_ROW:
            self._begin_anew()

    def _begin_anew(self) -> None:
        """Believe the slow runs, and drop what is known of smaller batches from before them.

        Larger ones stay: if they look too good they are run next, and that puts them right.
        """
        slower: dict[_Cell, float] = {}
        largest: dict[int, int] = {}
        for cell, row_s in self._slower:
            slower[cell] = min(row_s, slower.get(cell, row_s))
            largest[cell[1]] = max(cell[0], largest.get(cell[1], 0))
        retained = {
            (rows, length): row_s
            for (rows, length), row_s in self._row_s.items()
            if rows >= largest.get(length, 0)
        }
        self._row_s = retained | slower
        self.slowest_row_s = max(self._row_s.values())
        self._slower, self._before = [], {}
        self._limits.clear()
        self._overheads.clear()

    def _look(self, length_bucket: int) -> int:
        row_s_by_rows = self._by_rows(length_bucket)
        if not row_s_by_rows:
            return self._max_batch_size
        best = min(row_s_by_rows.values())
        bucket = min(rows for rows, row_s in row_s_by_rows.items() if row_s <= best * _WORTH)
        if bucket == max(row_s_by_rows) or self._looks % _EXPLORE == 0:
            bucket += (
                1  # nothing is known beyond, or it was long ago: one step further may be better
            )
        return min(1 << bucket, self._max_batch_size)

    def _by_rows(self, length_bucket: int) -> dict[int, float]:
        """Seconds per row by bucket of rows, at that length or the nearest that is known."""
        row_s_by_rows = {
            rows: row_s for (rows, length), row_s in self._row_s.items() if length == length_bucket
        }
        return row_s_by_rows or {
            rows: row_s for (rows, _), row_s in self._nearest_lengths(length_bucket)
        }

    def _nearest_lengths(self, length_bucket: int) -> Iterable[tuple[_Cell, float]]:
        lengths = {length for _, length in self._row_s}
        if not lengths:
            return []
        nearest = min(lengths, key=lambda length: abs(length - length_bucket))
        return [(cell, row_s) for cell, row_s in self._row_s.items() if cell[1] == nearest]

    def _known(self, rows: int, length: int) -> float | None:
        """Seconds per row of the cell, else of the nearest one, scaled by its length."""
        row_s = self._row_s.get((rows, length))
        if row_s is not None or not self._row_s:
            return row_s
        cell = min(self._row_s, key=lambda c: (abs(c[1] - length), abs(c[0] - rows)))
        return self._row_s[cell] * 2.0 ** (length - cell[1])
