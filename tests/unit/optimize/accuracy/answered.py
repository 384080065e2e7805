"""Answers of models that are not there: built from arrays, or from counts of what changed."""

from collections.abc import Mapping

import numpy as np

from headrace.core import Array
from headrace.optimize.accuracy import MetricChoice, ModelAnswers, choose_metric


def answered(
    outputs: Mapping[str, Array], failures: Mapping[int, str] | None = None
) -> ModelAnswers:
    """Answers whose rows are those of the arrays."""
    n = len(next(iter(outputs.values())))
    failed = failures or {}
    return ModelAnswers(
        n=n,
        rows={
            name: [None if i in failed else np.asarray(array[i]) for i in range(n)]
            for name, array in outputs.items()
        },
        failures=failed,
    )


def logits(classes: Array, *, noise: float = 0.0, seed: int = 0) -> Array:
    """Scores of two classes whose largest is the class."""
    drawn = np.random.default_rng(seed).normal(size=(len(classes), 2)) * noise
    scores: Array = (np.eye(2)[classes] * 4 + np.clip(drawn, -1, 1)).astype(np.float32)
    return scores


def flipped(
    n: int, lost: int, gained: int, *, wrong: int = 300
) -> tuple[Array, ModelAnswers, ModelAnswers]:
    """Labels, a baseline with `wrong` errors, and a candidate; both have scores."""
    labels = np.arange(n) % 2
    was = labels.copy()
    was[:wrong] = 1 - was[:wrong]
    now = was.copy()
    now[:gained] = labels[:gained]
    now[wrong : wrong + lost] = 1 - labels[wrong : wrong + lost]
    base = answered({"logits": logits(was)})
    return labels, base, answered({"logits": logits(now, noise=0.1)})


def choice_for(labels: Array, base: ModelAnswers, wish: str = "") -> MetricChoice:
    """What such answers are judged by."""
    return choose_metric(labels, base, wish)
