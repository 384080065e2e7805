"""Batched inference over evaluation examples.

Rows of equal shape share a batch. Dynamic quantization scales over the whole batch, so answers
depend slightly on the batch, as they do in serving.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from typing import Final

import numpy as np

from headrace.core import Array, HeadraceError, Tensors
from headrace.core.errors import RuntimeFailedError
from headrace.optimize.accuracy.examples import Examples, batches

MAX_ROWS: Final = 8
"""Rows of a batch; larger batches are no faster on a CPU."""
MAX_CACHED_BYTES: Final = 1 << 30
SMALL_ELEMENTS: Final = 4_096
"""Largest answers, in elements, that are always stored; larger ones only within `MAX_CACHED_BYTES`.
"""

Run = Callable[[Tensors], Tensors]
_Outcomes = tuple[Array, list[Tensors | HeadraceError]]
"""Indices of examples, with the answer or error of each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelAnswers:
    """Answers of one model to `n` examples."""

    n: int
    rows: Mapping[str, Sequence[Array | None]]
    """Answers by output and example, without the batch axis; None if missing or too large."""
    failures: Mapping[int, str] = field(default_factory=dict)
    """Error messages by example."""
    stopped: str = ""
    """Why the evaluation stopped early; empty if it is complete."""

    def has(self, output: str) -> Array:
        """Return a mask `[n]` of examples with an answer in this output."""
        rows = self.rows.get(output, ())
        if not rows:
            return np.zeros(self.n, bool)
        return np.array([row is not None for row in rows], bool)

    def stacked(self, output: str, indices: Array) -> Array | None:
        """Return answers to these examples, `[examples, ...]`; None if their shapes differ."""
        rows = self.rows[output]
        selected = [row for row in (rows[i] for i in indices.tolist()) if row is not None]
        if (
            len(selected) != len(indices)
            or len({(row.shape, row.dtype.kind) for row in selected}) > 1
        ):
            return None
        return np.stack(selected) if selected else None

    def size_bytes(self) -> int:
        """Return the approximate memory of the answers."""
        return sum(row.nbytes for rows in self.rows.values() for row in rows if row is not None)

    def merged(self, other: "ModelAnswers") -> "ModelAnswers":
        """Merge with answers to other examples of the same set."""
        names = [*self.rows, *(name for name in other.rows if name not in self.rows)]
        none: list[Array | None] = [None] * self.n
        pairs = {name: (self.rows.get(name, none), other.rows.get(name, none)) for name in names}
        return ModelAnswers(
            n=self.n,
            rows={
                name: [b if a is None else a for a, b in zip(*pair, strict=True)]
                for name, pair in pairs.items()
            },
            failures={**self.failures, **other.failures},
            stopped=other.stopped,
        )


def answers(
    run: Run,
    examples: Examples,
    *,
    threads: int = 1,
    deadline: float | None = None,
    max_rows: int = MAX_ROWS,
    only: Array | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> ModelAnswers:
    """Run a model on the examples; a failing example does not affect the others.

    Args:
        run: Inference of a loaded model; called from `threads` threads.
        deadline: Monotonic time after which no batch starts.
        max_rows: Most rows in a run.
        only: Indices of the examples to run; None for all.
    """
    indices = np.arange(len(examples)) if only is None else np.asarray(only, np.int64)
    selected = examples if only is None else examples.subset(indices)
    rows: dict[str, list[Array | None]] = {}
    failures: dict[int, str] = {}
    done = cached_bytes = 0
    stopped = ""
    parts = _run_all(
        run, selected, max_rows=max_rows, threads=threads, is_stopped=lambda: bool(stopped)
    )
    for part, outcomes in parts:
        for index, outcome in zip(indices[part].tolist(), outcomes, strict=True):
            if isinstance(outcome, HeadraceError):
                failures[index] = str(outcome)
                continue
            for name, row in outcome.items():
                if cached_bytes + row.nbytes <= MAX_CACHED_BYTES or row.size <= SMALL_ELEMENTS:
                    rows.setdefault(name, [None] * len(examples))[index] = row
                    cached_bytes += row.nbytes
        done += len(part)
        if deadline is not None and clock() >= deadline and done < len(selected):
            stopped = f"the time limit was reached after {done:,} of {len(selected):,} examples"
    return ModelAnswers(n=len(examples), rows=rows, failures=failures, stopped=stopped)


def _run_all(
    run: Run, examples: Examples, *, max_rows: int, threads: int, is_stopped: Callable[[], bool]
) -> Iterator[_Outcomes]:
    """Yield outcomes as they complete, until `is_stopped` returns true."""

    def ask(part: tuple[Array, Tensors]) -> _Outcomes:
        indices, inputs = part
        return indices, _outcomes(run, inputs, len(indices), batched=examples.batched)

    parts = batches(examples, max_rows)
    if threads <= 1:
        for part in parts:
            if is_stopped():
                return
            yield ask(part)
        return
    with ThreadPoolExecutor(threads) as pool:
        waiting: set[Future[_Outcomes]] = set()
        while True:
            more = [] if is_stopped() else list(islice(parts, 2 * threads - len(waiting)))
            waiting |= {pool.submit(ask, part) for part in more}
            if not waiting:
                return
            finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from [future.result() for future in finished]


def _outcomes(
    run: Run, inputs: Tensors, rows: int, *, batched: bool
) -> list[Tensors | HeadraceError]:
    """Return each row's answer or error; a failing batch is retried row by row."""
    try:
        return _rows(run(inputs), rows, batched=batched)
    except HeadraceError as error:
        if rows == 1:
            return [error]
    alone = ({name: array[i : i + 1] for name, array in inputs.items()} for i in range(rows))
    return [outcome for request in alone for outcome in _outcomes(run, request, 1, batched=batched)]


def _rows(outputs: Tensors, rows: int, *, batched: bool) -> list[Tensors | HeadraceError]:
    if not batched:
        return [
            {
                name: array[0, ...] if array.shape[:1] == (1,) else array
                for name, array in outputs.items()
            }
        ]
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            msg = f"output '{name}' has the shape {list(array.shape)} for {rows} rows"
            raise RuntimeFailedError(msg)
    return [{name: array[i, ...] for name, array in outputs.items()} for i in range(rows)]
