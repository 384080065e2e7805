"""Metrics are what others compute, and a weight is a repetition."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array
from headrace.optimize.accuracy import Metric
from headrace.optimize.accuracy.metrics import bootstrap_losses, score, weighted_scores
from tests.tabular_models import library

metrics = library("sklearn.metrics", "sklearn")
stats = library("scipy.stats", "sklearn")


def drawn(seed: int, n: int = 60, *, digits: int = 1) -> tuple[Array, Array]:
    """Values and answers with ties."""
    rng = np.random.default_rng(seed)
    truth = np.round(rng.normal(size=n), digits)
    return truth, np.round(truth + rng.normal(size=n), digits)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_are_those_of_other_libraries(seed: int) -> None:
    truth, got = drawn(seed)
    classes = (truth > 0.3).astype(float)

    assert score(Metric.RMSE, truth, got) == pytest.approx(
        metrics.root_mean_squared_error(truth, got)
    )
    assert score(Metric.MAE, truth, got) == pytest.approx(metrics.mean_absolute_error(truth, got))
    assert score(Metric.R2, truth, got) == pytest.approx(metrics.r2_score(truth, got))
    assert score(Metric.AUC, classes, got) == pytest.approx(metrics.roc_auc_score(classes, got))
    assert score(Metric.PEARSON, truth, got) == pytest.approx(stats.pearsonr(truth, got)[0])
    assert score(Metric.SPEARMAN, truth, got) == pytest.approx(stats.spearmanr(truth, got)[0])
    assert score(Metric.ACCURACY, classes, (got > 0).astype(float)) == pytest.approx(
        metrics.accuracy_score(classes, got > 0)
    )


@given(st.sampled_from(list(Metric)), st.integers(0, 2**32 - 1))
def test_a_weight_is_a_repetition(metric: Metric, seed: int) -> None:
    truth, got = drawn(seed, 12)
    if metric in (Metric.AUC, Metric.ACCURACY):
        truth = (np.arange(12) % 2).astype(float)
        got = got if metric is Metric.AUC else (got > 0).astype(float)
    counts = np.random.default_rng(seed).integers(0, 4, 12)
    counts[:4] += 1
    repeated = score(metric, np.repeat(truth, counts), np.repeat(got, counts))

    weighted = weighted_scores(metric, truth, got)(counts[None, :].astype(float))

    assert weighted[0] == pytest.approx(repeated, nan_ok=True)


@pytest.mark.parametrize("metric", [m for m in Metric if m is not Metric.ACCURACY])
def test_swapping_the_models_negates_the_losses(metric: Metric) -> None:
    truth, first = drawn(1)
    truth = (truth > 0).astype(float) if metric is Metric.AUC else truth
    second = first + np.random.default_rng(9).normal(size=60) * 0.1

    there = bootstrap_losses(metric, truth, first, second, np.random.default_rng(0))
    back = bootstrap_losses(metric, truth, second, first, np.random.default_rng(0))

    want = 1 / (1 + there) - 1 if metric.is_error else -there
    assert back == pytest.approx(want)
    assert len(there) == 1_000


def noisy(values: Array, rng: np.random.Generator) -> Array:
    found: Array = values + rng.normal(size=values.shape) * 0.2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("metric", [Metric.SPEARMAN, Metric.RMSE, Metric.AUC])
def test_the_bootstrap_covers_the_true_loss(metric: Metric) -> None:
    """A candidate as good as the baseline, each with an error of its own: the true loss is none."""
    rng = np.random.default_rng(11)
    covered = rejected = 0
    runs, n = 120, 80
    for _ in range(runs):
        truth: Array = rng.normal(size=n)
        shared: Array = rng.normal(size=n) * 0.4
        first, second = (noisy(truth + shared, rng) for _ in range(2))
        labels: Array = (truth > 0).astype(float) if metric is Metric.AUC else truth
        losses = bootstrap_losses(metric, labels, first, second, rng, resamples=300)
        low, high = np.quantile(losses, (0.025, 0.975))
        covered += low <= 0 <= high
        rejected += low > 0

    assert covered / runs >= 0.90
    assert rejected / runs <= 0.05


def test_an_error_where_there_was_none_is_a_whole_loss() -> None:
    assert Metric.RMSE.loss(0.0, 0.1) == 1.0
    assert Metric.RMSE.loss(0.0, 0.0) == 0.0
    assert Metric.RMSE.loss(2.0, 2.1) == pytest.approx(0.05)
    assert Metric.SPEARMAN.loss(0.82, 0.80) == pytest.approx(0.02)


@pytest.mark.slow
def test_many_examples_are_resampled_fewer_times() -> None:
    truth: Array = np.arange(30_000) % 2.0
    worse: Array = truth + 0.1

    losses = bootstrap_losses(Metric.MAE, truth, truth, worse, np.random.default_rng(0))

    assert len(losses) == 400
    assert (losses == 1.0).all()
