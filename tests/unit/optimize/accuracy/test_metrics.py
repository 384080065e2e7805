"""Quality metrics and their values."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy import Examples, Metric, RowTexts, choose_metric, usual_metric
from headrace.optimize.accuracy.metrics import bootstrap_losses, score, weighted_scores
from tests.tabular_models import library
from tests.unit.optimize.accuracy.answered import answered, logits

RNG = np.random.default_rng(1)
CLASSES: Array = RNG.integers(0, 2, 200)
RIGHT_MOSTLY: Array = np.where(RNG.random(200) < 0.9, CLASSES, 1 - CLASSES)


def test_classes_are_judged_by_accuracy_in_the_best_output() -> None:
    base = answered(
        {"other": logits(1 - CLASSES), "logits": logits(RIGHT_MOSTLY), "length": np.full(200, 7)}
    )

    choice = choose_metric(CLASSES, base)

    assert (choice.metric, choice.output, choice.warning) == (Metric.ACCURACY, "logits", "")
    assert choice.why == "accuracy of the largest score in output 'logits'"
    assert choice.score(CLASSES, choice.read(logits(RIGHT_MOSTLY))) == pytest.approx(
        (RIGHT_MOSTLY == CLASSES).mean()
    )


@pytest.mark.parametrize(
    ("answers", "cut"),
    [
        (RIGHT_MOSTLY * 0.6 + 0.2, "0.5"),
        (RIGHT_MOSTLY * 8.0 - 4.0, "0"),
        ((RIGHT_MOSTLY * 0.6 + 0.2)[:, None], "0.5"),
    ],
)
def test_one_probability_or_logit_is_cut(answers: Array, cut: str) -> None:
    choice = choose_metric(CLASSES, answered({"p": answers}))

    assert choice.why == f"accuracy of above {cut} in output 'p'"
    assert choice.read(answers).tolist() == RIGHT_MOSTLY.tolist()


def test_classes_of_plus_and_minus_one_are_told_by_the_sign() -> None:
    choice = choose_metric(CLASSES * 2 - 1, answered({"margin": RIGHT_MOSTLY * 3.0 - 1.0}))

    assert choice.metric is Metric.ACCURACY
    assert set(choice.read(RIGHT_MOSTLY * 3.0 - 1.0)) == {-1.0, 1.0}


def test_a_class_output_is_read_as_it_stands() -> None:
    choice = choose_metric(CLASSES + 3, answered({"label": (RIGHT_MOSTLY + 3)[:, None]}))

    assert (choice.metric, choice.output) == (Metric.ACCURACY, "label")


def test_names_of_classes_are_compared_with_the_labels_names() -> None:
    texts = np.array([b"no", b"yes"], np.object_)[RIGHT_MOSTLY]

    choice = choose_metric(CLASSES, answered({"label": texts}), names=("no", "yes"))

    assert choice.read(texts).tolist() == RIGHT_MOSTLY.tolist()
    assert choice.read(np.array([b"maybe"], np.object_)).tolist() == [-1.0]


def test_rare_classes_are_judged_by_the_ranking() -> None:
    fraud = (np.arange(500) < 15).astype(int)
    scores = fraud * 0.2 + np.random.default_rng(0).random(500) * 0.3

    choice = choose_metric(fraud, answered({"p": np.stack([1 - scores, scores], axis=1)}))

    assert choice.metric is Metric.AUC
    assert "only 3.0% of the labels are of the rarer class" in choice.why


def test_values_on_the_answers_scale_are_judged_by_their_error() -> None:
    truth = RNG.normal(size=200)

    choice = choose_metric(truth, answered({"y": truth[:, None] + 0.1}))

    assert choice.metric is Metric.RMSE
    assert "the baseline explains 99% of their variance" in choice.why


def test_values_on_another_scale_are_judged_by_their_order() -> None:
    truth = RNG.normal(size=200)

    choice = choose_metric(truth, answered({"y": truth * 100 + 7, "z": -truth}))

    assert (choice.metric, choice.output) == (Metric.SPEARMAN, "y")
    assert "on another scale: rank correlation" in choice.why


def test_a_baseline_without_an_error_is_judged_by_explained_variance() -> None:
    truth = RNG.normal(size=200)

    assert choose_metric(truth, answered({"y": truth})).metric is Metric.R2


def test_many_whole_numbers_may_be_values() -> None:
    stars = RNG.integers(1, 6, 200)

    choice = choose_metric(stars, answered({"y": stars + RNG.normal(size=200) * 0.5}))

    assert choice.metric is Metric.RMSE


@pytest.mark.parametrize(
    ("wish", "metric", "output"),
    [
        ("auc", Metric.AUC, "a"),
        ("b", Metric.ACCURACY, "b"),
        ("accuracy:b", Metric.ACCURACY, "b"),
        ("MAE : b", Metric.MAE, "b"),
        ("spearman", Metric.SPEARMAN, "a"),
    ],
)
def test_a_wish_is_heeded(wish: str, metric: Metric, output: str) -> None:
    noisy = np.clip(RIGHT_MOSTLY * 0.5 + RNG.random(200), 0, 1)
    base = answered({"a": RIGHT_MOSTLY * 0.6 + 0.2, "b": noisy})

    choice = choose_metric(CLASSES, base, wish)

    assert (choice.metric, choice.output) == (metric, output)


@pytest.mark.parametrize(
    ("labels", "outputs", "wish", "told"),
    [
        (
            CLASSES,
            {"p": logits(CLASSES)},
            "f1",
            "'f1' is neither an output (p) nor a metric (accuracy, ",
        ),
        (CLASSES, {"p": logits(CLASSES)}, "auc:q", "'q' is neither an output (p)"),
        (
            CLASSES + 1,
            {"p": logits(CLASSES)[:, :1].repeat(2, 1)[:, :, None].repeat(3, 2)},
            "",
            "p (float32 [2, 3] a row)",
        ),
        (
            CLASSES + 4,
            {"p": logits(CLASSES)[:, [0, 1, 1]]},
            "",
            "(classes, 4 to 5): p (float32 [3] a row)",
        ),
        (CLASSES[:9], {"p": logits(CLASSES)}, "", "9 labels for 200 examples"),
        (RNG.normal(size=200), {"p": logits(CLASSES)}, "auc", "(values, "),
    ],
)
def test_what_does_not_fit_is_said_with_what_there_is(
    labels: Array, outputs: dict[str, Array], wish: str, told: str
) -> None:
    with pytest.raises(InvalidArgumentError) as error:
        choose_metric(labels, answered(outputs), wish)

    assert told in str(error.value)


def test_labels_that_the_baseline_only_guesses_are_doubted() -> None:
    choice = choose_metric(CLASSES, answered({"p": logits(1 - RIGHT_MOSTLY)}))

    assert "do these labels belong to this model?" in choice.warning


def test_values_that_the_baseline_does_not_follow_are_doubted() -> None:
    truth = RNG.normal(size=200)

    assert "do they belong to this model?" in choose_metric(truth, answered({"y": -truth})).warning


def test_outputs_with_answers_that_are_no_numbers_are_not_chosen() -> None:
    broken = logits(CLASSES)[:, 0].copy()
    broken[0] = np.nan

    choice = choose_metric(CLASSES, answered({"a": broken, "b": logits(RIGHT_MOSTLY)}))

    assert choice.output == "b"


def test_a_model_that_answered_nothing_fits_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match="p \\(of varying shape a row\\)"):
        choose_metric(CLASSES, answered({"p": logits(CLASSES)}, dict.fromkeys(range(200), "no")))


@pytest.mark.parametrize(
    ("texts", "labels", "metric"),
    [
        (RowTexts.CROSS_ENCODER, [2.5, 4.0, 1.0], Metric.SPEARMAN),
        (RowTexts.CROSS_ENCODER, [0, 1, 2], None),
        (RowTexts.BI_ENCODER, [2.5, 4.0, 1.0], Metric.SPEARMAN),
        (RowTexts.BI_ENCODER, [0, 5, 3], Metric.SPEARMAN),
        (RowTexts.BI_ENCODER, [0, 1, 1], Metric.AUC),
        (RowTexts.SINGLE, [2.5, 4.0, 1.0], None),
    ],
)
def test_pairs_with_a_score_are_judged_by_its_order(
    texts: RowTexts, labels: list[float], metric: Metric | None
) -> None:
    examples = Examples(inputs=[{}, {}, {}], labels=np.array(labels), texts=texts)

    assert usual_metric(examples) is metric


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
        losses = bootstrap_losses(metric, labels, first, second, rng)
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
