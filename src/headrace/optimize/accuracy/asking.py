"""Answers of a model to the examples, several at a time.

Rows of equal shape are asked together. A model with dynamic quantization takes its scale over a
whole batch, so that its answers depend a little on who shares it: as they do when it is served.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from headrace.core import Array, HeadraceError, InvalidArgumentError, Tensors
from headrace.core.errors import RuntimeFailedError
from headrace.optimize.accuracy.examples import Examples, batches

MAX_ROWS: Final = 8
"""Rows asked together: on a processor more of them gain nothing."""
MAX_KEPT_BYTES: Final = 1 << 30
SMALL_ELEMENTS: Final = 4_096
"""Outputs with rows of so many elements are kept for all examples; larger ones while there is
room."""

Run = Callable[[Tensors], Tensors]
Progress = Callable[[int, int], None]
"""Told how many examples are done, of how many."""
_Part = tuple[Array, Tensors]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one model answered to `n` examples.

    `rows`: by output, the answer to each example without the batch axis; None where there is none,
    or it was too large to keep. `failures`: by example, why the model failed. `output`: the only
    one that was kept; None for all. `stopped`: why not all were asked; empty if they were.
    """

    n: int
    rows: Mapping[str, Sequence[Array | None]]
    failures: Mapping[int, str] = field(default_factory=dict)
    output: str | None = None
    stopped: str = ""

    def has(self, output: str) -> Array:
        """Which examples have an answer in this output, `[n]`."""
        rows = self.rows.get(output, ())
        if not rows:
            return np.zeros(self.n, bool)
        return np.array([row is not None for row in rows], bool)

    def stacked(self, output: str, indices: Array) -> Array | None:
        """Answers to these examples, `[examples, ...]`; None if their shapes differ."""
        rows = self.rows[output]
        chosen = [row for row in (rows[i] for i in indices.tolist()) if row is not None]
        if len(chosen) != len(indices) or len({(row.shape, row.dtype.kind) for row in chosen}) > 1:
            return None
        return np.stack(chosen) if chosen else None

    def size_bytes(self) -> int:
        """What they take in memory, about."""
        return sum(row.nbytes for rows in self.rows.values() for row in rows if row is not None)

    def merged(self, other: "Answers") -> "Answers":
        """With another's answers to other ones of the same examples."""
        names = [*self.rows, *(name for name in other.rows if name not in self.rows)]
        none: list[Array | None] = [None] * self.n
        pairs = {name: (self.rows.get(name, none), other.rows.get(name, none)) for name in names}
        return Answers(
            n=self.n,
            rows={
                name: [b if a is None else a for a, b in zip(*pair, strict=True)]
                for name, pair in pairs.items()
            },
            failures={**self.failures, **other.failures},
            output=self.output,
            stopped=other.stopped,
        )


def answers(
    run: Run,
    examples: Examples,
    *,
    output: str | None = None,
    threads: int = 1,
    deadline: float | None = None,
    on_progress: Progress = lambda _done, _total: None,
    max_rows: int = MAX_ROWS,
    only: Array | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Answers:
    """What a model answers; an example on which it fails spoils no other one.

    Args:
        run: Of a loaded model; called from several threads where `threads` says so.
        output: The one to keep; None for all.
        deadline: Monotonic time after which no more are asked.
        max_rows: Most rows in a run.
        only: Examples that are asked, by index; None for all.

    Raises:
        InvalidArgumentError: The model has no such output.
    """
    indices = np.arange(len(examples)) if only is None else np.asarray(only, np.int64)
    asked = examples if only is None else examples.subset(indices)
    found = _Collected(n=len(examples), output=output)
    done = 0
    for part, outcomes in _run_all(run, batches(asked, max_rows), examples.batched, threads, found):
        for index, outcome in zip(indices[part].tolist(), outcomes, strict=True):
            found.add(index, outcome)
        done += len(part)
        on_progress(done, len(asked))
        if deadline is not None and clock() >= deadline and done < len(asked):
            found.stop(f"time was up after {done:,} of {len(asked):,} examples")
    return found.answers()


class _Collected:
    """Answers so far."""

    def __init__(self, *, n: int, output: str | None) -> None:
        self._n = n
        self._output = output
        self._rows: dict[str, list[Array | None]] = {}
        self._failures: dict[int, str] = {}
        self._bytes = 0
        self.stopped = ""

    def add(self, index: int, outcome: Tensors | HeadraceError) -> None:
        if isinstance(outcome, HeadraceError):
            self._failures[index] = str(outcome)
            return
        if self._output is not None and self._output not in outcome:
            told = ", ".join(outcome)
            msg = f"the model has no output {self._output!r}, only {told}"
            raise InvalidArgumentError(msg)
        for name, row in outcome.items():
            if self._output not in (None, name):
                continue
            if self._bytes + row.nbytes > MAX_KEPT_BYTES and row.size > SMALL_ELEMENTS:
                continue
            if name not in self._rows:
                self._rows[name] = [None] * self._n
            self._rows[name][index] = row
            self._bytes += row.nbytes

    def stop(self, why: str) -> None:
        self.stopped = why

    def answers(self) -> Answers:
        return Answers(
            n=self._n,
            rows=self._rows,
            failures=self._failures,
            output=self._output,
            stopped=self.stopped,
        )


def _run_all(
    run: Run,
    parts: Iterator[_Part],
    batched: bool,  # noqa: FBT001  # private
    threads: int,
    found: _Collected,
) -> Iterator[tuple[Array, list[Tensors | HeadraceError]]]:
    """Outcomes as they come, until somebody stops."""
    if threads <= 1:
        for indices, inputs in parts:
            if found.stopped:
                return
            yield indices, _outcomes(run, inputs, len(indices), batched=batched)
        return

    def one(part: _Part) -> tuple[Array, list[Tensors | HeadraceError]]:
        return part[0], _outcomes(run, part[1], len(part[0]), batched=batched)

    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[tuple[Array, list[Tensors | HeadraceError]]]] = set()
        while True:
            more = [] if found.stopped else list(islice(parts, 2 * threads - len(waiting)))
            waiting |= {pool.submit(one, part) for part in more}
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from [future.result() for future in finished]


def _outcomes(
    run: Run, inputs: Tensors, rows: int, *, batched: bool
) -> list[Tensors | HeadraceError]:
    """What each row is answered; rows alone where they fail together."""
    try:
        return _rows(run(inputs), rows, batched=batched)
    except HeadraceError as error:
        if rows == 1:
            return [error]
    alone = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(rows))
    return [outcome for one in alone for outcome in _outcomes(run, one, 1, batched=batched)]


def _rows(found: Tensors, rows: int, *, batched: bool) -> list[Tensors | HeadraceError]:
    if not batched:
        return [
            {
                name: array[0, ...] if array.shape[:1] == (1,) else array
                for name, array in found.items()
            }
        ]
    for name, array in found.items():
        if array.shape[:1] != (rows,):
            msg = f"output '{name}' has the shape {list(array.shape)} for {rows} rows"
            raise RuntimeFailedError(msg)
    return [{name: array[i, ...] for name, array in found.items()} for i in range(rows)]
