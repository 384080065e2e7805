"""A window of rows through the model: in which runs, and what came of each row.

Rows of different lengths are sorted first, so that a run holds near ones: a tokenizer pads each run
to its longest row, and a model that takes lists takes only equal ones together.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import (
    Array,
    Code,
    Datatype,
    HeadraceError,
    ModelSignature,
    Tensors,
)
from headrace.jobs.feeding import Fed
from headrace.scoring.scorer import Scored, Scorer

_PATIENCE_S: Final = (0.2, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Waits between tries while what the model needs is away; a job has no caller who waits."""
_AWAY: Final = frozenset({Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED})


class StoppedError(HeadraceError):
    """Whoever started the job wants it to end."""

    code = Code.CANCELLED


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What came of a window. `parts`: rows by their place, and the outputs of these in order."""

    rows: int
    parts: list[tuple[Array, Tensors]] = field(default_factory=list)
    errors: dict[int, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answerer:
    """Runs windows. `pool`: where runs of one window go beside each other; None for one by one.

    `is_stopped`: asked before each run. `sleep` waits while what the model needs is away.
    `lock`: held for each run of a model that takes one at a time.
    """

    scorer: Scorer
    run_rows: int
    pool: Executor | None = None
    is_stopped: Callable[[], bool] = lambda: False
    sleep: Callable[[float], object] = time.sleep
    lock: contextlib.AbstractContextManager[object] = field(default_factory=threading.Lock)

    def answer(self, fed: Fed, outputs: Sequence[str]) -> Answers:
        """Run all rows of a window that can be.

        Raises:
            StoppedError: It was stopped.
            HeadraceError: What stands in the way of every row, also after some patience.
        """
        errors = dict(fed.bad)
        parts: list[tuple[Array, Tensors]] = []
        batches = list(_batches(fed, self.scorer.signature, self.run_rows))
        for places, scored in zip(batches, self._runs(batches, fed, outputs), strict=True):
            for at, error in scored.errors.items():
                errors[int(places[at])] = str(error)
            good = places
            if scored.errors:
                good = places[scored.places(len(places))]
            if len(good):
                parts.append((good, scored.outputs))
        return Answers(rows=fed.rows, parts=parts, errors=errors)

    def _runs(self, batches: Sequence[Array], fed: Fed, outputs: Sequence[str]) -> Iterable[Scored]:
        if self.pool is None or len(batches) == 1:
            return (self._run(places, fed, outputs) for places in batches)
        return self.pool.map(lambda places: self._run(places, fed, outputs), batches)

    def _run(self, places: Array, fed: Fed, outputs: Sequence[str]) -> Scored:
        inputs = _taken(fed, places, batched=self.scorer.signature.batched)
        lock = contextlib.nullcontext() if self.scorer.concurrent else self.lock
        for wait_s in (*_PATIENCE_S, None):
            if self.is_stopped():
                raise StoppedError("the job was stopped")
            try:
                with lock:
                    return self.scorer.score(inputs, outputs)
            except HeadraceError as error:
                if error.code not in _AWAY or wait_s is None:
                    raise
                self.sleep(wait_s)
        raise AssertionError


def _batches(fed: Fed, signature: ModelSignature, run_rows: int) -> Iterable[Array]:
    """The rows of each run."""
    good = np.arange(fed.rows)
    if fed.bad:
        good = np.delete(good, list(fed.bad))
    if not signature.batched:
        yield from good.reshape(-1, 1)
        return
    if fed.ragged:
        yield from _equal(fed, good, run_rows)
        return
    texts = [fed.dense[spec.name] for spec in signature.inputs if spec.datatype is Datatype.BYTES]
    if texts and len(good) > run_rows:
        lengths = sum(np.array([_length(row) for row in text[good]]) for text in texts)
        good = good[np.argsort(lengths, kind="stable")]
    for start in range(0, len(good), run_rows):
        yield good[start : start + run_rows]


def _equal(fed: Fed, good: Array, run_rows: int) -> Iterable[Array]:
    """Rows of equal shapes together, the shortest first."""
    groups: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for place in good.tolist():
        shapes = tuple(parts[place].shape for parts in fed.ragged.values())
        groups.setdefault(shapes, []).append(place)
    for _, places in sorted(groups.items()):
        for start in range(0, len(places), run_rows):
            yield np.array(places[start : start + run_rows])


def _length(row: Array | bytes) -> int:
    return len(row) if isinstance(row, bytes) else sum(map(len, row.ravel()))


def together(places: Array) -> slice | Array:
    """The same places, as a slice where they are neighbours in order: that needs no copy."""
    first, last = int(places[0]), int(places[-1])
    is_run = last - first + 1 == len(places) and bool((np.diff(places) == 1).all())
    return slice(first, last + 1) if is_run else places


def _taken(fed: Fed, places: Array, *, batched: bool) -> Tensors:
    """The inputs of some rows; without a copy where they lie beside each other."""
    chosen = together(places)
    inputs = {name: array[chosen] for name, array in fed.dense.items()}
    for name, parts in fed.ragged.items():
        inputs[name] = np.stack([parts[place] for place in places.tolist()])
    if not batched:
        return {name: array[0] for name, array in inputs.items()}
    return inputs
