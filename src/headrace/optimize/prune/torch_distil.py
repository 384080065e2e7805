"""Distillation of a pruned graph in PyTorch.

The loss is the distance to the source's answers, plus cross entropy with labels. A part of the
examples is held out, and the best weights on it are used, initial weights included.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  # so it is called everywhere

from headrace.core import Array
from headrace.optimize.candidate import CannotBuildError, TrainingExamples
from headrace.optimize.prune.graph import PruningGraph, floats, is_compatible, open_session, run
from headrace.optimize.prune.torch_graph import TorchGraph, stacked

_ROWS: Final = 32
_HELD_OUT: Final = 10
"""Divisor of the held-out share: one example in this many is held out."""
_MAX_HELD_OUT: Final = 96
_STYLES: Final = 4
"""Number of evaluations on the held-out part."""
_RATE_NORMED: Final = 5e-5
"""Learning rate of networks with LayerNormalization, small for nearly converged weights."""
_RATE: Final = 2e-4
_WARM_UP_STEPS: Final = 10
_CLASSES: Final = 2
"""Rank of a class score output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _LabelledBatch:
    """Batch of examples of one shape with the source's answers and optional labels."""

    inputs: dict[str, Any]
    answers: list[Any]
    labels: Any


def distil(
    source: PruningGraph,
    smaller: PruningGraph,
    training: TrainingExamples,
    *,
    deadline: float,
    threads: int,
    seed: int,
    clock: Callable[[], float] = time.monotonic,
    on_progress: Callable[[str], None] = lambda _: None,
) -> str:
    """Distil `source` into `smaller` in place until `deadline`; return a summary.

    Raises:
        CannotBuildError: PyTorch cannot run the graph, or runs it differently.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        student = _Student(source, smaller, training, threads=threads, seed=seed)
        return student.learn(deadline=deadline, clock=clock, on_progress=on_progress)
    finally:
        torch.set_num_threads(before)


class _Student:
    """Student of the distillation: a pruned graph."""

    def __init__(
        self,
        source: PruningGraph,
        smaller: PruningGraph,
        training: TrainingExamples,
        *,
        threads: int,
        seed: int,
    ) -> None:
        self._rng = np.random.default_rng(seed)
        self._teaching = training
        self._graph = smaller
        example = training.examples[0]
        module = TorchGraph(smaller)
        expected = run(open_session(smaller.proto(), threads), example)
        try:
            with torch.no_grad():
                actual = [answer.numpy() for answer in module(stacked([example]))]
        except Exception as error:  # PyTorch raises any exception for an unsupported graph
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise CannotBuildError(f"PyTorch cannot run it: {first}") from error
        if not floats(expected):
            raise CannotBuildError("it has no float output to train on")
        if not is_compatible(actual, expected):
            raise CannotBuildError("PyTorch's answers differ from ONNX Runtime's")
        self._module = module
        self._session = open_session(source.proto(), threads)
        order = self._rng.permutation(len(training.examples))
        count = min(len(order) // _HELD_OUT, _MAX_HELD_OUT)
        self._held_out = [self._labelled_batch(part) for part in self._parts(order[:count])]
        self._order = order[count:]
        kinds = {node.op_type for node in smaller.nodes}
        self._rate = _RATE_NORMED if "LayerNormalization" in kinds else _RATE

    def learn(
        self, *, deadline: float, clock: Callable[[], float], on_progress: Callable[[str], None]
    ) -> str:
        started = clock()
        whole = max(deadline - started, 1e-9)
        optimizer = torch.optim.AdamW(self._module.parameters(), lr=self._rate, weight_decay=0.01)
        first = best = self._held_out_loss()
        best_weights = self._module.learned()
        steps, looked = 0, 1
        for labelled_batch in self._endless():
            removed = (clock() - started) / whole
            if removed >= looked / _STYLES or removed >= 1:
                looked = math.floor(removed * _STYLES) + 1
                on_progress(f"distilling, {min(removed, 1):.0%}")
                if (now := self._held_out_loss()) < best:
                    best, best_weights = now, self._module.learned()
            if removed >= 1:
                break
            steps += 1
            share = min(1, steps / _WARM_UP_STEPS) * (1 - removed)
            for group in optimizer.param_groups:
                group["lr"] = self._rate * share
            optimizer.zero_grad()
            self._loss(labelled_batch).backward()
            torch.nn.utils.clip_grad_norm_(self._module.parameters(), 1.0)
            optimizer.step()
        for name, array in best_weights.items():
            self._graph.constants[name] = array
        return (
            f"{steps} steps of up to {_ROWS} rows in {clock() - started:.0f} s; loss on "
            f"examples held out {first:.4g} before, {best:.4g} after"
        )

    def _loss(self, labelled_batch: _LabelledBatch) -> Any:
        answers = self._module(labelled_batch.inputs)
        # Mean square of the differences, relative to the targets' scale, of FP32 outputs.
        targets = labelled_batch.answers
        loss = torch.zeros(())
        for actual, target in zip(answers, targets, strict=True):
            if actual.dtype == torch.float32:
                loss = loss + F.mse_loss(actual, target) / target.square().mean().clamp_min(1e-6)
        scored = floats([answer.numpy() for answer in labelled_batch.answers])
        if (
            labelled_batch.labels is None
            or not scored
            or not _scores_classes(labelled_batch, answers[scored[0]])
        ):
            return loss
        scores, teacher_scores = answers[scored[0]], labelled_batch.answers[scored[0]]
        are_shares = bool((teacher_scores >= 0).all()) and bool(
            torch.allclose(teacher_scores.sum(1), torch.ones(1))
        )
        logs = torch.log(scores.clamp_min(1e-9)) if are_shares else F.log_softmax(scores, dim=1)
        return loss + F.nll_loss(logs, labelled_batch.labels.long())

    def _held_out_loss(self) -> float:
        """Return the loss per row on held-out examples."""
        rows = total = 0.0
        with torch.no_grad():
            for labelled_batch in self._held_out:
                size = len(next(iter(labelled_batch.inputs.values())))
                total += size * float(self._loss(labelled_batch))
                rows += size
        return total / rows if rows else math.inf

    def _endless(self) -> Iterator[_LabelledBatch]:
        while True:
            parts = list(self._parts(self._rng.permutation(self._order)))
            for i in self._rng.permutation(len(parts)):
                yield self._labelled_batch(parts[i])

    def _parts(self, order: Array) -> Iterator[Array]:
        """Yield indices of equal-shaped examples, at most `_ROWS` each."""
        by_shape: dict[tuple[tuple[int, ...], ...], list[int]] = {}
        for i in order:
            example = self._teaching.examples[i]
            by_shape.setdefault(tuple(array.shape for array in example.values()), []).append(int(i))
        for indices in by_shape.values():
            for begin in range(0, len(indices), _ROWS):
                yield np.array(indices[begin : begin + _ROWS])

    def _labelled_batch(self, part: Array) -> _LabelledBatch:
        examples = [self._teaching.examples[i] for i in part]
        together = {
            name: np.concatenate([example[name] for example in examples]) for name in examples[0]
        }
        answers = [torch.from_numpy(np.array(output)) for output in run(self._session, together)]
        labels = self._teaching.labels
        batch_labels = None if labels is None else torch.tensor([float(labels[i]) for i in part])
        return _LabelledBatch(inputs=stacked(examples), answers=answers, labels=batch_labels)


def _scores_classes(labelled_batch: _LabelledBatch, scores: Any) -> bool:
    """Return whether labels are class numbers of `scores`."""
    if scores.ndim != _CLASSES or scores.dtype != torch.float32 or scores.shape[1] < _CLASSES:
        return False
    labels = labelled_batch.labels
    are_classes = bool((labels == labels.floor()).all()) and bool((labels >= 0).all())
    return are_classes and bool((labels < scores.shape[1]).all())
