"""Asks a candidate the examples and judges it; gives up early on one that is ruined.

Looks come at doubling numbers of examples, drawn from all over the file. A candidate that lost a
sixth of its accuracy is given up after some hundred examples of thousands.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.optimize.accuracy.asking import MAX_ROWS, Answers, Progress, Run, answers
from headrace.optimize.accuracy.examples import ORDER_SEED, Examples
from headrace.optimize.accuracy.gate import CONFIDENCE, is_hopeless, judge
from headrace.optimize.accuracy.metrics import MetricChoice
from headrace.optimize.accuracy.verdict import Verdict

FIRST_LOOK: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate's answers and what was judged by them; `given_up`: before all were asked."""

    answers: Answers
    verdict: Verdict
    given_up: bool = False


def try_candidate(
    run: Run,
    examples: Examples,
    base: Answers,
    *,
    metric: MetricChoice,
    max_loss: float,
    rng: np.random.Generator,
    threads: int = 1,
    deadline: float | None = None,
    on_progress: Progress = lambda _done, _total: None,
    max_rows: int = MAX_ROWS,
    confidence: float = CONFIDENCE,
) -> Trial:
    """Ask a candidate what the baseline was asked, and judge it.

    Raises:
        InvalidArgumentError: The examples have no labels, or are not those of the baseline.
    """
    labels = examples.labels
    if labels is None:
        raise InvalidArgumentError("examples without labels judge no accuracy; use the fidelity")
    order = np.random.default_rng(ORDER_SEED).permutation(np.flatnonzero(base.has(metric.output)))
    found = Answers(n=base.n, rows={})
    done, is_over, given_up = 0, False, False
    while not is_over:
        part = order[done : max(2 * done, FIRST_LOOK)]
        more = answers(
            run,
            examples,
            threads=threads,
            deadline=deadline,
            on_progress=_shifted(on_progress, done, len(order)),
            max_rows=max_rows,
            only=part,
        )
        found, done = found.merged(more), done + len(part)
        is_over = bool(found.stopped) or done >= len(order)
        if not is_over:
            given_up = is_hopeless(base, found, labels, metric=metric, max_loss=max_loss, rng=rng)
            is_over = given_up
    verdict = judge(
        base, found, labels, metric=metric, max_loss=max_loss, rng=rng, confidence=confidence
    )
    if given_up:
        why = f"given up after {done:,} of {len(order):,} examples, as {verdict.reason}"
        verdict = replace(verdict, passes=False, reason=why)
    return Trial(answers=found, verdict=verdict, given_up=given_up)


def _shifted(on_progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: on_progress(before + done, total)
