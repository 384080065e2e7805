"""How alike are two models' answers, where nobody knows the right ones? Fidelity only. Pure.

Without labels one can see that answers changed, but not whether they got worse, and that is the
weaker statement. Both limits follow from the loss that is allowed:

- Classes: a changed answer is at worst a lost one, but some are gained. With twice the allowed loss
  changed, the loss stays within its limit unless more than three of four changes are losses. (Of
  quantized text classifiers that were measured with labels, changes were lost by 50 to 80 %.)
- Numbers: an error that is independent of the answers lowers any correlation with the truth by the
  factor `1 / sqrt(1 + e²)` (Spearman 1904, attenuation), `e` being the error's size over the spread
  of the answers. A limit of one point allows `e` up to 0.14.

The spread is what tells one answer from another. That is why cosines are no measure here: all
embeddings of a model may share a large part, which keeps their cosine near 1 while what
distinguishes them is lost. For embeddings the second limit is a strict one: their errors are many
and small, and average out in a distance. Labels prove more, and allow more.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.optimize.accuracy.asking import Answers
from headrace.optimize.accuracy.output_fidelity import OutputFidelity, compared, problem_of
from headrace.optimize.accuracy.rounding import only_rounding, pairs_of

WEAKER: Final = (
    "fidelity only: without labels one sees that an answer changed, not whether it got worse"
)
CHANGED_PER_LOSS: Final = 2.0
_CONFIDENCE: Final = 0.95
_EXACT: Final = 1e-9
_LEAST: Final = 30
"""Of fewer examples, a spread says little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How alike the answers are, and whether that is alike enough.

    `agreement_ratio`: examples of the same class, in the output where they differ most; 1 where
    none tells a class. `error_ratio`: the largest of the outputs that tell none. `n`: examples that
    both answered. `reason`: with what was measured, and why that is weaker than labels.
    """

    passes: bool
    reason: str
    agreement_ratio: float
    n: int
    error_ratio: float = 0.0
    largest_relative: float = 0.0
    outputs: Mapping[str, OutputFidelity] = field(default_factory=dict)


def measure_fidelity(base: Answers, candidate: Answers, *, max_loss: float = 0.01) -> Fidelity:
    """Whether a candidate answers as the baseline does, in all outputs.

    Args:
        max_loss: What may be lost, were there labels: 0.01 allows 2 % changed answers, and an
            error of 14 % of the answers' spread.

    Raises:
        InvalidArgumentError: They were asked different examples, or the limit is none.
    """
    if not 0 <= max_loss < 1 or base.n != candidate.n:
        msg = f"{base.n} and {candidate.n} answers cannot be compared with a limit of {max_loss:g}"
        raise InvalidArgumentError(msg)
    failed = sorted(candidate.failures.keys() - base.failures.keys())
    if failed:
        why = candidate.failures[failed[0]][:200]
        return _broken(f"it fails on {len(failed):,} examples that the baseline answers: {why}")
    outputs: dict[str, OutputFidelity] = {}
    share = np.ones(base.n)
    for name in base.rows:
        indices, pairs = pairs_of(base, candidate, name)
        problem = problem_of(name, pairs) if pairs else f"it answers nothing in output '{name}'"
        if problem:
            return _broken(problem)
        outputs[name], same = compared(name, pairs)
        share[indices] = np.minimum(share[indices], same)
    if not outputs:
        return _broken("the baseline answers nothing to compare with")
    n = max(one.n for one in outputs.values())
    # Examples that were not compared count as the same above, and not at all here.
    changed = float((1.0 - share).sum()) / n
    return _decided(
        outputs, n, round(1.0 - changed, 12), max_loss, is_same=only_rounding(base, candidate)
    )


def _decided(
    outputs: Mapping[str, OutputFidelity],
    n: int,
    agreement: float,
    max_loss: float,
    *,
    is_same: bool,
) -> Fidelity:
    numbers = {name: one for name, one in outputs.items() if one.agreement_ratio is None}
    worst = max(numbers, key=lambda name: numbers[name].error_ratio, default="")
    error = numbers[worst].error_ratio if worst else 0.0
    tells_class = len(numbers) < len(outputs)
    most_changed, most_error = CHANGED_PER_LOSS * max_loss, _most_error(max_loss)
    needed = _needed(most_changed) if tells_class else _LEAST
    has_agreed = agreement >= 1 - most_changed - _EXACT
    is_near = has_agreed and error <= most_error
    if is_same and is_near:
        why = "all numbers differ by rounding only"
    elif not has_agreed:
        why = f"more than {most_changed:.2%} of the answers changed"
    elif error > most_error:
        why = f"output '{worst}' differs by more than {most_error:.1%} of its spread"
    elif n < needed:
        why = f"not enough examples: n = {n:,}, and about {needed:,} are needed"
    else:
        why = "within the limits"
    told = [f"{agreement:.2%} of {n:,} answers agree"] if tells_class else [f"n = {n:,}"]
    if worst:
        low, high, most = numbers[worst].quantiles
        told.append(
            f"output '{worst}' differs by {error:.1%} of its spread (half of the examples by "
            f"{low:.1%} at most, 95 % by {high:.1%}, all by {most:.1%})"
        )
    return Fidelity(
        passes=is_near and (is_same or n >= needed),
        reason=f"{why}: {', '.join(told)}; {WEAKER}",
        agreement_ratio=agreement,
        n=n,
        error_ratio=error,
        largest_relative=max(one.largest_relative for one in outputs.values()),
        outputs=dict(outputs),
    )


def _most_error(max_loss: float) -> float:
    """The error, over the spread, that lowers correlations by the allowed loss."""
    return math.sqrt(1 / (1 - max_loss) ** 2 - 1)


def _needed(most_changed: float) -> int:
    """So many examples without a change show that fewer than that change."""
    if not 0 < most_changed < 1:
        return 1
    return math.ceil(math.log(1 - _CONFIDENCE) / math.log(1 - most_changed))


def _broken(why: str) -> Fidelity:
    return Fidelity(
        passes=False,
        reason=f"{why}; {WEAKER}",
        agreement_ratio=0.0,
        n=0,
        error_ratio=1.0,
        largest_relative=1.0,
    )
