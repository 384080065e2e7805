"""Asks a candidate the examples and judges it; gives up early on one that is ruined.

Looks come at doubling numbers of examples, drawn from all over the file. A candidate that lost a
sixth of its accuracy is given up after some hundred examples of thousands. A trial may end at such
a look and go on later, so that many candidates are screened before any is asked everything.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import InvalidArgumentError
from headrace.optimize.accuracy.asking import MAX_ROWS, Answers, Progress, Run, answers
from headrace.optimize.accuracy.examples import ORDER_SEED, Examples
from headrace.optimize.accuracy.gate import CONFIDENCE, is_hopeless, judge
from headrace.optimize.accuracy.metrics import MetricChoice
from headrace.optimize.accuracy.verdict import Verdict, figures

FIRST_LOOK: Final = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A candidate's answers and what was judged by them.

    `asked`: how many examples. `given_up`: before all were asked, as it is ruined. `is_part`: it
    may go on, as only the first ones were asked.
    """

    answers: Answers
    verdict: Verdict
    asked: int
    given_up: bool = False
    is_part: bool = False


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
    most: int | None = None,
    begun: Trial | None = None,
) -> Trial:
    """Ask a candidate what the baseline was asked, and judge it.

    Args:
        most: How many examples are asked at most; None for all.
        begun: A part of the same trial, whose answers are not asked for again.

    Raises:
        InvalidArgumentError: The examples have no labels, or are not those of the baseline.
    """
    labels = examples.labels
    if labels is None:
        raise InvalidArgumentError("examples without labels judge no accuracy; use the fidelity")
    order = np.random.default_rng(ORDER_SEED).permutation(np.flatnonzero(base.has(metric.output)))
    total = len(order)
    until = total if most is None else min(most, total)
    found, done = (begun.answers, begun.asked) if begun else (Answers(n=base.n, rows={}), 0)
    given_up = False
    while done < until and not given_up and not found.stopped:
        part = order[done : min(max(2 * done, FIRST_LOOK), until)]
        more = answers(
            run,
            examples,
            threads=threads,
            deadline=deadline,
            on_progress=_shifted(on_progress, done, total),
            max_rows=max_rows,
            only=part,
        )
        found, done = found.merged(more), done + len(part)
        if done < total or found.stopped:
            given_up = is_hopeless(base, found, labels, metric=metric, max_loss=max_loss, rng=rng)
    verdict = judge(
        base, found, labels, metric=metric, max_loss=max_loss, rng=rng, confidence=confidence
    )
    is_part = not given_up and (done < total or bool(found.stopped))
    if given_up:
        why = f"given up after {done:,} of {total:,} examples, as {verdict.reason}"
        verdict = replace(verdict, passes=False, reason=why)
    elif is_part:
        what = f"on the first {verdict.n:,} of {total:,} examples, {figures(verdict)}"
        verdict = replace(verdict, reason=what)
    return Trial(answers=found, verdict=verdict, asked=done, given_up=given_up, is_part=is_part)


def _shifted(on_progress: Progress, before: int, total: int) -> Progress:
    return lambda done, _: on_progress(before + done, total)
