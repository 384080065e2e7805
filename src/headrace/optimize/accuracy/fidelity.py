"""Fidelity of a candidate's answers to the baseline's, for examples without labels.

Reimers and Gurevych 2019, "Sentence-BERT: Sentence Embeddings using Siamese BERT-Networks": each
text is embedded alone, by the mean over its tokens or by the first one.

Without labels, changed answers can be detected, but not whether they got worse. Both limits follow
from the allowed loss:

- Classes: a changed answer is at worst a lost one, but some are gained. With twice the allowed loss
  changed, the loss stays within its limit unless more than three of four changes are losses. (For
  quantized text classifiers that were measured with labels, 50 to 80 % of the changes were losses.)
- Numbers: an error that is independent of the answers lowers any correlation with the truth by the
  factor `1 / sqrt(1 + e²)` (Spearman 1904, attenuation), `e` being the error's size over the spread
  of the answers. A limit of one point allows `e` up to 0.14.

The spread distinguishes one answer from another. Cosines are unsuitable here: all embeddings of a
model may share a large component, which keeps their cosine near 1 while the distinguishing part is
lost. For embeddings the second limit is strict: their errors are many and small, and average out in
a distance. Labels give stronger evidence, and allow larger changes.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import Array, InvalidArgumentError, RuntimeFailedError, Tensors
from headrace.optimize.accuracy.examples import first_request, second_request
from headrace.optimize.accuracy.inference import ModelAnswers, Run
from headrace.pipeline.tokenize import MASK

ROUNDING_RATIO: Final = 1e-3
"""Rounding limit over an output's mean size. Kernels that sum in another order differ by less;
eight-bit and bfloat16 kernels by more."""
_MAX_CONCURRENT: Final = 4_000_000
Pair = tuple[Array, Array]
"""Answers of the baseline and the candidate to one example."""


def pairs_of(base: ModelAnswers, candidate: ModelAnswers, output: str) -> tuple[Array, list[Pair]]:
    """Return the indices of examples that both models answered, and their answers."""
    both = np.flatnonzero(base.has(output) & candidate.has(output))
    reference, now = base.rows[output], candidate.rows.get(output, ())
    answers = ((reference[i], now[i]) for i in both.tolist())
    return both, [(a, b) for a, b in answers if a is not None and b is not None]


def only_rounding(base: ModelAnswers, candidate: ModelAnswers) -> bool:
    """Return whether float outputs exist and differ by rounding at most."""
    has_numbers = False
    for name in base.rows:
        _, pairs = pairs_of(base, candidate, name)
        if not pairs or pairs[0][0].dtype.kind != "f":
            continue
        if any(reference.shape != now.shape for reference, now in pairs) or not _are_close(pairs):
            return False
        has_numbers = True
    return has_numbers


def chunks(pairs: Sequence[Pair]) -> Iterator[tuple[Array, Array, Array]]:
    """Yield the float64 elements of both sides with their pair index, in large chunks."""
    start, size = 0, 0
    for end, (reference, _) in enumerate(pairs, start=1):
        size += reference.size
        if size < _MAX_CONCURRENT and end < len(pairs):
            continue
        part = pairs[start:end]
        owner = np.repeat(np.arange(start, end), [array.size for array, _ in part])
        yield _flat([array for array, _ in part]), _flat([array for _, array in part]), owner
        start, size = end, 0


def _are_close(pairs: Sequence[Pair]) -> bool:
    largest, total, count = 0.0, 0.0, 0
    for reference, now, _ in chunks(pairs):
        if not np.isfinite(reference).all() or not np.isfinite(now).all():
            return False
        largest = max(largest, float(np.abs(reference - now).max(initial=0.0)))
        total, count = total + float(np.abs(reference).sum()), count + reference.size
    return largest <= ROUNDING_RATIO * total / max(count, 1)


def _flat(rows: Sequence[Array]) -> Array:
    return np.concatenate([row.reshape(-1) for row in rows]).astype(np.float64)


_SCORES: Final = ("logit", "prob", "score", "class", "softmax", "label")
_NUMBERS: Final = ("embed", "hidden", "pool", "feature", "vector", "box")
_NEAR_ONE: Final = 1e-2
_SAMPLE_ROWS: Final = 16
_MOST: Final = 1e9
_QUANTILES: Final = (0.5, 0.95, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFidelity:
    """Fidelity of one output over `n` examples."""

    n: int
    error_ratio: float = 0.0
    """RMS difference over the spread of the baseline's answers."""
    quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Median, 95 % quantile and maximum of the error ratio by example."""
    agreement_ratio: float | None = None
    """Share of positions with the same class; None if the output is not class scores."""
    largest_relative: float = 0.0
    """Largest difference of a number over the larger of its value and the output's mean size."""


def shape_problem(name: str, pairs: Sequence[Pair]) -> str:
    """Return why answers cannot be compared; empty if they can."""
    for reference, now in pairs:
        if reference.shape != now.shape or reference.dtype.kind != now.dtype.kind:
            return (
                f"output '{name}' is {now.dtype} {list(now.shape)} instead of {reference.dtype} "
                f"{list(reference.shape)}"
            )
        if now.dtype.kind == "f" and (np.isfinite(reference) & ~np.isfinite(now)).any():
            return f"output '{name}' holds non-finite numbers"
    return ""


def compare_output(name: str, pairs: Sequence[Pair]) -> tuple[OutputFidelity, Array]:
    """Return the output's fidelity, and each example's share of positions with the same class."""
    share = _same_class_share(name, pairs)
    ratio = None if share is None else float(share.mean())
    same = np.ones(len(pairs)) if share is None else share
    if pairs[0][0].dtype.kind != "f":
        return OutputFidelity(n=len(pairs), agreement_ratio=ratio), same
    errors, relative = _errors(pairs)
    overall = float(np.sqrt((errors**2).mean()))
    low, high, maximum = np.quantile(errors, _QUANTILES).tolist()
    fidelity = OutputFidelity(
        n=len(pairs),
        error_ratio=overall,
        quantiles=(low, high, maximum),
        agreement_ratio=ratio,
        largest_relative=relative,
    )
    return fidelity, same


def is_class_output(name: str, rows: Sequence[Array]) -> bool:
    """Return whether an output is class scores along its last axis.

    Detected by the name, by rows that sum to one, and by rows without unit length, as embeddings
    often have unit length.
    """
    first = rows[0]
    if first.ndim == 0 or first.shape[-1] < 2:  # noqa: PLR2004  # of one, none is the largest
        return False
    lower = name.lower()
    if any(word in lower for word in _NUMBERS):
        return False
    if any(word in lower for word in _SCORES):
        return True
    samples = [row.astype(np.float64) for row in rows[:_SAMPLE_ROWS]]
    if all((row >= 0).all() and _are_equal_shapes(row.sum(axis=-1)) for row in samples):
        return True
    return first.ndim == 1 and not all(_are_equal_shapes(np.linalg.norm(row)) for row in samples)


def _are_equal_shapes(values: Array | np.floating) -> bool:
    return bool((np.abs(np.asarray(values) - 1.0) < _NEAR_ONE).all())


def _same_class_share(name: str, pairs: Sequence[Pair]) -> Array | None:
    if pairs[0][0].dtype.kind != "f":
        return np.array(
            [
                float(np.mean(reference == now)) if reference.size else 1.0
                for reference, now in pairs
            ]
        )
    if not is_class_output(name, [reference for reference, _ in pairs]):
        return None
    return np.array(
        [
            float(np.mean(reference.argmax(axis=-1) == now.argmax(axis=-1)))
            for reference, now in pairs
        ]
    )


def _errors(pairs: Sequence[Pair]) -> tuple[Array, float]:
    """Return the RMS difference over the spread by example, and the largest relative one."""
    width = _width(pairs)
    total, columns, squares, count = 0.0, np.zeros(width), np.zeros(width), 0
    for reference, _, _ in chunks(pairs):
        by_column = np.where(np.isfinite(reference), reference, 0.0).reshape(-1, width)
        columns, squares = columns + by_column.sum(axis=0), squares + (by_column**2).sum(axis=0)
        total, count = total + float(np.abs(by_column).sum()), count + len(by_column)
    mean = columns / max(count, 1)
    variance = float((squares / max(count, 1) - mean**2).mean())
    mean_square = float((squares / max(count, 1)).mean())
    # Equal answers have no spread; their size is used instead.
    scale = np.sqrt(variance if variance > 1e-12 * mean_square else mean_square)
    usual = total / max(count * width, 1)
    squared_errors, relative = np.zeros(len(pairs)), 0.0
    for reference, now, owner in chunks(pairs):
        difference = np.where(np.isfinite(reference), now - reference, 0.0)
        squared_errors += np.bincount(owner, difference**2, len(pairs))
        sizes = np.maximum(np.abs(np.where(np.isfinite(reference), reference, np.inf)), usual)
        ratios = np.abs(difference) / np.maximum(sizes, np.finfo(np.float64).tiny)
        relative = max(relative, float(ratios.max(initial=0.0)))
    sizes = np.maximum([reference.size for reference, _ in pairs], 1)
    errors = np.sqrt(squared_errors / sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(errors > 0, errors / scale, 0.0)
    return np.minimum(ratio, _MOST), min(relative, _MOST)


def _width(pairs: Sequence[Pair]) -> int:
    """Return the size of the last axis, if all have the same; else 1."""
    widths = {reference.shape[-1] if reference.ndim else 1 for reference, _ in pairs}
    width = widths.pop()
    return width if not widths and width else 1


WEAKER: Final = (
    "fidelity only: without labels, a changed answer cannot be judged as better or worse"
)
CHANGED_PER_LOSS: Final = 2.0
_CONFIDENCE: Final = 0.95
_EXACT: Final = 1e-9
_LEAST: Final = 30
"""Least examples for an estimate of the spread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """Result of a fidelity check against the baseline."""

    passes: bool
    reason: str
    """Verdict with its figures, and the caveat that fidelity proves less than labels."""
    agreement_ratio: float = 0.0
    """Share of examples with the same class in the most different output; 1 without classes."""
    n: int = 0
    """Examples that both models answered."""
    error_ratio: float = 1.0
    """Largest error ratio of outputs without class scores."""
    largest_relative: float = 1.0
    outputs: Mapping[str, OutputFidelity] = field(default_factory=dict)


def measure_fidelity(
    base: ModelAnswers, candidate: ModelAnswers, *, max_loss: float = 0.01
) -> Fidelity:
    """Check that a candidate answers like the baseline in all outputs.

    Args:
        max_loss: Loss that labels would allow: 0.01 allows 2 % changed answers, and an
            error of 14 % of the answers' spread.

    Raises:
        InvalidArgumentError: The examples differ, or the limit is out of range.
    """
    if not 0 <= max_loss < 1 or base.n != candidate.n:
        msg = f"{base.n} and {candidate.n} answers cannot be compared with a limit of {max_loss:g}"
        raise InvalidArgumentError(msg)
    failed = sorted(candidate.failures.keys() - base.failures.keys())
    problem = ""
    if failed:
        reason = candidate.failures[failed[0]][:200]
        problem = f"it fails on {len(failed):,} examples that the baseline answers: {reason}"
    elif not base.rows:
        problem = "the baseline answers nothing to compare with"
    outputs: dict[str, OutputFidelity] = {}
    share = np.ones(base.n)
    for name in base.rows if not problem else ():
        indices, pairs = pairs_of(base, candidate, name)
        problem = shape_problem(name, pairs) if pairs else f"it answers nothing in output '{name}'"
        if problem:
            break
        outputs[name], same = compare_output(name, pairs)
        share[indices] = np.minimum(share[indices], same)
    if problem:
        return Fidelity(passes=False, reason=f"{problem}; {WEAKER}")
    n = max(output.n for output in outputs.values())
    # Examples that were not compared count as equal above, and are skipped here.
    changed = float((1.0 - share).sum()) / n
    return _decide(
        outputs, n, round(1.0 - changed, 12), max_loss, is_same=only_rounding(base, candidate)
    )


def _decide(
    outputs: Mapping[str, OutputFidelity],
    n: int,
    agreement: float,
    max_loss: float,
    *,
    is_same: bool,
) -> Fidelity:
    numbers = {name: output for name, output in outputs.items() if output.agreement_ratio is None}
    worst = max(numbers, key=lambda name: numbers[name].error_ratio, default="")
    error = numbers[worst].error_ratio if worst else 0.0
    tells_class = len(numbers) < len(outputs)
    # The error, over the spread, that lowers correlations by the allowed loss.
    most_changed, most_error = CHANGED_PER_LOSS * max_loss, math.sqrt(1 / (1 - max_loss) ** 2 - 1)
    needed = 1 if tells_class else _LEAST
    if tells_class and 0 < most_changed < 1:
        # Number of examples without a change that shows a smaller share of changes.
        needed = math.ceil(math.log(1 - _CONFIDENCE) / math.log(1 - most_changed))
    has_agreed = agreement >= 1 - most_changed - _EXACT
    is_near = has_agreed and error <= most_error
    if is_same and is_near:
        reason = "all numbers differ by rounding only"
    elif not has_agreed:
        reason = f"more than {most_changed:.2%} of the answers changed"
    elif error > most_error:
        reason = f"output '{worst}' differs by more than {most_error:.1%} of its spread"
    elif n < needed:
        reason = f"not enough examples: n = {n:,}, and about {needed:,} are needed"
    else:
        reason = "within the limits"
    figures = [f"{agreement:.2%} of {n:,} answers agree"] if tells_class else [f"n = {n:,}"]
    if worst:
        low, high, maximum = numbers[worst].quantiles
        figures.append(
            f"output '{worst}' differs by {error:.1%} of its spread (half of the examples by "
            f"{low:.1%} at most, 95 % by {high:.1%}, all by {maximum:.1%})"
        )
    return Fidelity(
        passes=is_near and (is_same or n >= needed),
        reason=f"{reason}: {', '.join(figures)}; {WEAKER}",
        agreement_ratio=agreement,
        n=n,
        error_ratio=error,
        largest_relative=max(output.largest_relative for output in outputs.values()),
        outputs=dict(outputs),
    )


_MASKS: Final = (MASK, "input_mask")
_MIN_WIDTH: Final = 32
"""Least embedding width; narrower rows are class scores."""
_ROWS: Final = 2
_TOKENS: Final = 3


def gives_embeddings(answer: Tensors, *, length: int) -> bool:
    """Return whether all outputs are embeddings of texts or tokens.

    Args:
        answer: To one row of `length` tokens.
    """
    shapes = [array.shape for array in answer.values() if array.dtype.kind == "f"]
    of_tokens = [shape for shape in shapes if len(shape) == _TOKENS and shape[1] == length]
    of_texts = [shape for shape in shapes if len(shape) == _ROWS and shape[1] >= _MIN_WIDTH]
    return bool(shapes) and len(of_tokens) + len(of_texts) == len(answer)


def cosine_run(run: Run) -> Run:
    """Return a run that answers text pairs with cosines `[rows]` per embedding output."""

    def compared(pairs: Tensors) -> Tensors:
        first_texts, second_texts = first_request(pairs), second_request(pairs)
        first, second = (_embedded(run(texts), texts) for texts in (first_texts, second_texts))
        if not first or first.keys() != second.keys():
            raise RuntimeFailedError("no output holds embeddings of the texts")
        return {name: _cosines(first[name], second[name]) for name in first}

    return compared


def _embedded(answer: Tensors, texts: Tensors) -> Tensors:
    """Return embeddings `[rows, width]` by output and pooling."""
    mask = next((texts[name] for name in _MASKS if name in texts), None)
    if mask is None:
        mask = np.ones_like(next(iter(texts.values())))
    embeddings: dict[str, Array] = {}
    for name, array in answer.items():
        if array.dtype.kind != "f":
            continue
        if array.ndim == _TOKENS and array.shape[:2] == mask.shape:
            weights = mask[..., None].astype(np.float64)
            embeddings[f"{name}, mean"] = (array * weights).sum(axis=1) / weights.sum(axis=1)
            embeddings[f"{name}, first"] = array[:, 0, :].astype(np.float64)
        elif array.ndim == _ROWS and array.shape[1] > 1:
            embeddings[name] = array.astype(np.float64)
    return embeddings


def _cosines(first: Array, second: Array) -> Array:
    """Return cosines `[rows]`; 0 for zero embeddings."""
    together = (first * second).sum(axis=1)
    sizes = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines: Array = np.divide(together, sizes, out=np.zeros_like(together), where=sizes != 0)
    return cosines
