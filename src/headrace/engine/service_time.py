"""Service times of runs, learned from earlier runs, and the batch size that is worth running."""

from collections.abc import Iterable
from typing import Final

from mypy_extensions import mypyc_attr

from headrace.engine.grouping import USUAL_OVERHEAD

_WEIGHT: Final = 0.2
"""Weight of a new observation in the moving average."""
_WORTH: Final = 1.05
"""A smaller batch is preferred if its time per row is within this factor of the best."""
_REFRESH: Final = 32
"""Runs between two updates of the best batch size."""
_EXPLORE: Final = 8
"""Every this many updates, twice the best size is allowed, so that a stale average is renewed."""

_SLOWER: Final = 2.0
"""A run that takes this multiple of the known time may mean that the model has become slower."""
_IN_A_ROW: Final = 4
"""This many such runs in a row mean that the model has become slower."""

_Cell = tuple[int, int]


def _bucket(n: int) -> int:
    """Return the bucket of `n`: 1, 2, 3-4, 5-8, 9-16, ... are buckets 0, 1, 2, 3, 4, ..."""
    return (n - 1).bit_length() if n > 1 else 0


def _middle(bucket: int) -> float:
    """Return the middle of a bucket."""
    return 0.75 * (1 << bucket) if bucket > 1 else float(1 << bucket)


@mypyc_attr(allow_interpreted_subclasses=True)  # where mypyc compiles it
class ServiceTimes:
    """Moving averages of the seconds per row of a run, by batch size and by length.

    Both are bucketed by powers of two. Without an observation, the nearest bucket is used.

    A model may become slower as a whole: a service that it waits for is slow, or other processes
    use its cores. The averages of smaller batches then look good only because they are old. A
    replica that used them would run smaller and smaller batches at the time when it can least
    afford that. These averages are therefore dropped as soon as runs in a row are much slower than
    known.
    """

    def __init__(self, *, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self.slowest_row_s = 0.0
        """Upper bound of the known time per row, over all batch sizes and lengths."""
        self._row_s: dict[_Cell, float] = {}
        self._limits: dict[int, int] = {}
        self._overheads: dict[int, float] = {}
        self._slower: list[tuple[_Cell, float]] = []
        self._before: dict[_Cell, float] = {}
        self._runs = 0
        self._looks = 0

    def observe(self, *, rows: int, length: int, seconds: float) -> None:
        """Record that a batch of `rows`, padded to `length`, took `seconds`."""
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
        """Return the estimated seconds of a run of `rows` at `length`; None without data."""
        row_s = self._known(_bucket(rows), _bucket(length))
        return None if row_s is None else row_s * rows

    def best_rows(self, length: int) -> int:
        """Return the batch size beyond which time per row no longer falls."""
        bucket = _bucket(length)
        limit = self._limits.get(bucket)
        if limit is None:
            limit = self._limits[bucket] = self._look(bucket)
        return limit

    def overhead(self, length: int) -> float:
        """Return the fixed cost of a run at `length`, in elements (rows times length).

        It is computed from the smallest and the largest batch with an observation there: time per
        row falls as the fixed cost is shared by more rows.
        """
        bucket = _bucket(length)
        overhead = self._overheads.get(bucket)
        if overhead is None:
            overhead = self._overheads[bucket] = self._update_overhead(bucket)
        return overhead

    def _update_overhead(self, length_bucket: int) -> float:
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
        """Detect runs in a row that are much slower than the known time `before` them."""
        if row_s <= before * _SLOWER:
            if self._slower:
                self._slower, self._before = [], {}
            return
        self._before[cell] = before
        self._slower.append((cell, row_s))
        if len(self._slower) == _IN_A_ROW:
            self._restart()

    def _restart(self) -> None:
        """Keep the averages of the slow runs and drop the older ones of smaller batches.

        Those of larger batches stay: if they look too good, such a batch runs next and corrects
        them.
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
            bucket += 1  # there is no newer observation beyond: one size larger may be better
        return min(1 << bucket, self._max_batch_size)

    def _by_rows(self, length_bucket: int) -> dict[int, float]:
        """Return seconds per row by bucket of rows, at that length or the nearest one observed."""
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
        """Return the seconds per row of the cell, or of the nearest one scaled by its length."""
        row_s = self._row_s.get((rows, length))
        if row_s is not None or not self._row_s:
            return row_s
        cell = min(self._row_s, key=lambda c: (abs(c[1] - length), abs(c[0] - rows)))
        return self._row_s[cell] * 2.0 ** (length - cell[1])
