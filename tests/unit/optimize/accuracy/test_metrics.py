"""The output and the metric that fit are chosen, and doubts are said."""

import numpy as np
import pytest

from headrace.core import Array, InvalidArgumentError
from headrace.optimize.accuracy import Examples, Metric, Texts, choose_metric, usual_metric
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
        (CLASSES, {"p": logits(CLASSES)}, "f1", "'f1' is no output (p) and no metric (accuracy, "),
        (CLASSES, {"p": logits(CLASSES)}, "auc:q", "'q' is no output (p)"),
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
        (Texts.TOGETHER, [2.5, 4.0, 1.0], Metric.SPEARMAN),
        (Texts.TOGETHER, [0, 1, 2], None),
        (Texts.APART, [2.5, 4.0, 1.0], Metric.SPEARMAN),
        (Texts.APART, [0, 5, 3], Metric.SPEARMAN),
        (Texts.APART, [0, 1, 1], Metric.AUC),
        (Texts.ONE, [2.5, 4.0, 1.0], None),
    ],
)
def test_pairs_with_a_score_are_judged_by_its_order(
    texts: Texts, labels: list[float], metric: Metric | None
) -> None:
    examples = Examples(inputs=[{}, {}, {}], labels=np.array(labels), texts=texts)

    assert usual_metric(examples) is metric
