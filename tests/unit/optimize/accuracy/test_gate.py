"""Quality gate and trial of a candidate."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, InvalidArgumentError, RuntimeFailedError, Tensors
from headrace.optimize.accuracy import (
    Examples,
    GateTrial,
    Metric,
    ModelAnswers,
    QualityVerdict,
    choose_metric,
    is_hopeless,
    judge,
    try_candidate,
)
from headrace.optimize.accuracy.examples import stacked_rows
from headrace.optimize.accuracy.inference import answers
from tests.unit.optimize.accuracy.answered import answered, choice_for, flipped, logits

N = 2_693


def judged(
    labels: Array,
    base: ModelAnswers,
    candidate: ModelAnswers,
    *,
    max_loss: float = 0.01,
    wish: str = "",
) -> QualityVerdict:
    return judge(
        base,
        candidate,
        labels,
        metric=choice_for(labels, base, wish),
        max_loss=max_loss,
        rng=np.random.default_rng(0),
    )


@pytest.mark.parametrize(
    ("lost", "gained", "passes"),
    [
        (12, 13, True),
        (19, 20, True),
        (13, 16, True),
        (49, 36, True),
        (73, 48, False),
        (164, 85, False),
        (610, 136, False),
        (26, 0, False),
    ],
)
def test_measured_candidates_get_the_verdict_that_they_deserve(
    lost: int,
    gained: int,
    passes: bool,  # noqa: FBT001  # a parameter
) -> None:
    verdict = judged(*flipped(N, lost, gained))

    assert verdict.passes is passes
    assert (verdict.lost, verdict.gained, verdict.n) == (lost, gained, N)
    assert verdict.loss == pytest.approx((lost - gained) / N)
    assert verdict.accuracy == pytest.approx(verdict.base_accuracy - verdict.loss)


def test_what_passes_by_the_tests_power_alone_says_so() -> None:
    verdict = judged(*flipped(N, 49, 36))

    assert verdict.passes
    assert verdict.loss_bound > 0.01 >= verdict.detectable_loss
    assert (
        verdict.warning
        == "its loss is below 1.06 points with 95 % confidence, not below 1.00 points"
    )
    assert verdict.reason == (
        "no significant loss: 88.86% to 88.38% accuracy, a loss of 0.48 points [-0.19, +1.18] "
        "(p = 0.19; 49 lost, 36 gained of 2,693; a loss of 0.96 points would be seen in four of "
        "five cases)"
    )


def test_a_small_loss_that_is_no_chance_is_rejected_and_told_to_be_small() -> None:
    verdict = judged(*flipped(N, 14, 2))

    assert not verdict.passes
    assert verdict.reason.startswith("significantly worse, though within 1.00 points: ")


def test_a_loss_that_may_be_chance_still_counts_above_the_limit() -> None:
    verdict = judged(*flipped(400, 20, 13))

    assert not verdict.passes
    assert verdict.p_value > 0.05
    assert verdict.reason.startswith("the loss exceeds 1.00 points, though not significantly")


def test_too_few_labels_are_said_with_how_many_are_needed() -> None:
    verdict = judged(*flipped(100, 1, 1, wrong=20))

    assert not verdict.passes
    assert verdict.needed == 542
    assert verdict.reason.startswith(
        "not enough labels: n = 100, and a limit of 1.00 points needs about 542"
    )


def test_answers_that_all_stay_need_270_labels() -> None:
    assert judged(*flipped(270, 0, 0, wrong=20)).passes
    assert not judged(*flipped(260, 0, 0, wrong=20)).passes


def test_rounding_needs_no_labels_to_be_harmless() -> None:
    labels = np.arange(50) % 2
    base, candidate = (answered({"logits": logits(labels, noise=noise)}) for noise in (0.0, 1e-4))

    verdict = judged(labels, base, candidate)

    assert verdict.passes
    assert verdict.warning == (
        "not enough labels for a proof (n = 50, and a limit of 1.00 points needs about 271); all "
        "numbers differ by rounding only"
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(0, 0.5))
def test_identical_answers_pass_without_a_loss(seed: int, n: int, max_loss: float) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    base = answered({"logits": rng.normal(size=(n, 2)).astype(np.float32)})

    verdict = judged(labels, base, base, max_loss=max_loss)

    assert verdict.passes
    assert (verdict.loss, verdict.p_value, verdict.agreement_ratio) == (0.0, 1.0, 1.0)


@given(st.integers(0, 2**32 - 1))
def test_swapping_base_and_candidate_mirrors_the_verdict(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 60)
    first, second = (
        answered({"s": (labels[:, None] * [[-1, 1]] + rng.normal(size=(60, 2)))}) for _ in range(2)
    )

    there, back = judged(labels, first, second), judged(labels, second, first)

    low, high = there.loss_ci
    assert back.loss == -there.loss
    assert back.loss_ci == (-high, -low)
    assert back.p_value == there.p_value
    assert (back.lost, back.gained) == (there.gained, there.lost)


@pytest.mark.slow
def test_candidates_without_a_loss_are_rarely_rejected_for_one() -> None:
    rng = np.random.default_rng(3)
    labels = rng.integers(0, 2, 400)
    was = np.where(rng.random(400) < 0.9, labels, 1 - labels)
    rejected = 0
    for _ in range(150):
        # As many turn wrong as turn right, on average.
        turned = np.where(was == labels, rng.random(400) < 0.02, rng.random(400) < 0.18)
        now = np.where(turned, 1 - was, was)
        verdict = judged(labels, answered({"c": was}), answered({"c": now}))
        rejected += verdict.loss > 0 and verdict.p_value < 0.05

    assert rejected / 150 <= 0.05


def test_a_failing_candidate_is_rejected_with_its_error() -> None:
    labels, base, _ = flipped(N, 0, 0)
    failing = answered({"logits": logits(labels)}, failures={7: "no kernel", 9: "no kernel"})

    verdict = judged(labels, base, failing)

    assert not verdict.passes
    assert verdict.reason == "it fails on 2 examples that the baseline answers: no kernel"


def test_examples_on_which_both_fail_do_not_count() -> None:
    labels, base, _ = flipped(1_000, 0, 0)
    both = answered({"logits": logits(labels)}, failures={7: "too long"})

    verdict = judged(labels, both, both)

    assert verdict.passes
    assert verdict.n == 999
    del base


def test_one_answer_that_is_no_number_rejects() -> None:
    labels, base, _ = flipped(1_000, 0, 0)
    scores = logits(labels)
    scores[3, 0] = np.nan

    verdict = judged(labels, base, answered({"logits": scores}))

    assert verdict.reason == "it answers 1 examples with non-finite numbers"


def test_answers_of_another_shape_reject() -> None:
    labels, base, _ = flipped(1_000, 0, 0)

    verdict = judged(labels, base, answered({"logits": np.zeros((1_000, 3), np.float32)}))

    assert verdict.reason == "its answers have another shape than the baseline's"


def test_an_output_that_the_candidate_lacks_rejects() -> None:
    labels, base, _ = flipped(100, 0, 0, wrong=10)

    verdict = judged(labels, base, answered({"other": np.zeros(100)}))

    assert verdict.reason == "it answers no example in output 'logits'"


def of_values(error: float, n: int = 700) -> tuple[Array, ModelAnswers, ModelAnswers]:
    rng = np.random.default_rng(2)
    labels = np.clip(np.round(rng.normal(2.5, 1.2, n), 1), 0, 5)
    similarity = labels / 5 + rng.normal(size=n) * 0.15 - 3
    worse_one = similarity + rng.normal(size=n) * error
    return labels, answered({"s": similarity[:, None]}), answered({"s": worse_one[:, None]})


@pytest.mark.parametrize(("error", "passes"), [(0.0, True), (0.01, True), (0.1, False)])
def test_rank_correlation_is_judged_by_a_paired_bootstrap(
    error: float,
    passes: bool,  # noqa: FBT001  # a parameter
) -> None:
    verdict = judged(*of_values(error))

    assert verdict.metric is Metric.SPEARMAN
    assert verdict.passes is passes
    assert verdict.loss_ci[0] <= verdict.loss <= verdict.loss_ci[1]
    assert "spearman, a loss of" in verdict.reason


def test_an_error_may_grow_by_a_part_of_itself() -> None:
    labels, base, _ = of_values(0.0)
    on_scale = answered({"s": np.stack([(r[0] + 3) * 5 for r in base.rows["s"] if r is not None])})
    noise = np.random.default_rng(4).normal(size=len(labels))
    moved = [r + 0.4 * e for r, e in zip(on_scale.rows["s"], noise, strict=True) if r is not None]

    verdict = judged(labels, on_scale, answered({"s": np.stack(moved)}))

    assert verdict.metric is Metric.RMSE
    assert not verdict.passes
    assert verdict.loss == pytest.approx(verdict.accuracy / verdict.base_accuracy - 1)
    assert "%" in verdict.reason


def test_answers_that_never_vary_lose_all_correlation() -> None:
    labels, base, _ = of_values(0.0)

    verdict = judged(labels, base, answered({"s": np.ones((len(labels), 1))}))

    assert not verdict.passes
    assert verdict.accuracy == 0.0


def test_a_dozen_values_are_not_enough() -> None:
    verdict = judged(*of_values(0.05, n=12), max_loss=0.5)

    assert not verdict.passes
    assert verdict.reason.startswith("not enough labels: n = 12")


@pytest.mark.parametrize("limit", [-0.01, 1.0, float("nan")])
def test_a_limit_that_is_none_is_refused(limit: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"loss limit of .* is invalid"):
        judged(*flipped(N, 0, 0), max_loss=limit)


def test_answers_to_other_examples_are_refused() -> None:
    labels, base, _ = flipped(100, 0, 0, wrong=10)
    _, other, _ = flipped(90, 0, 0, wrong=10)

    with pytest.raises(InvalidArgumentError, match="100 and 90 answers for 100 labels"):
        judged(labels, base, other)


def hopeless(labels: Array, base: ModelAnswers, candidate: ModelAnswers) -> bool:
    return is_hopeless(
        base,
        candidate,
        labels,
        metric=choice_for(labels, base),
        max_loss=0.01,
        rng=np.random.default_rng(0),
    )


def test_only_ruined_candidates_are_hopeless() -> None:
    assert hopeless(*flipped(300, 68, 15, wrong=60))
    assert not hopeless(*flipped(300, 9, 5, wrong=60))
    assert hopeless(*of_values(0.4, n=300))
    assert not hopeless(*of_values(0.02, n=300))
    assert not hopeless(*of_values(0.4, n=60))


def test_failing_is_hopeless_and_not_having_been_asked_is_not() -> None:
    labels, base, _ = flipped(300, 0, 0, wrong=60)

    assert hopeless(labels, base, answered({"logits": logits(labels)}, failures={1: "crash"}))
    assert not hopeless(labels, base, ModelAnswers(n=300, rows={}))


ROWS = 2_000
X: Array = np.random.default_rng(0).normal(size=(ROWS, 4)).astype(np.float32)
WEIGHTS: Array = np.array([[1, -1], [0.5, -0.5], [0, 0], [0.2, -0.2]], np.float32)
LABELS: Array = (X @ WEIGHTS + np.random.default_rng(1).normal(size=(ROWS, 2)) * 0.5).argmax(axis=1)
EXAMPLES = Examples(inputs=stacked_rows({"x": X}, has_batch_axis=True), labels=LABELS)


class Net:
    """A net with other weights; counts what it is asked."""

    def __init__(self, weights: Array, fails_at: int = -1) -> None:
        self.rows = 0
        self._weights = weights
        self._fails_at = fails_at

    def run(self, inputs: Tensors) -> Tensors:
        self.rows += len(inputs["x"])
        if 0 <= self._fails_at < self.rows:
            raise RuntimeFailedError("out of memory")
        return {"logits": inputs["x"] @ self._weights}


BASE = answers(Net(WEIGHTS).run, EXAMPLES, max_rows=64)


def tried(
    net: Net,
    *,
    deadline: float | None = None,
    most: int | None = None,
    begun: GateTrial | None = None,
) -> GateTrial:
    return try_candidate(
        net.run,
        EXAMPLES,
        BASE,
        metric=choose_metric(LABELS, BASE),
        max_loss=0.01,
        rng=np.random.default_rng(0),
        deadline=deadline,
        maximum=most,
        started=begun,
    )


def test_a_good_candidate_is_asked_everything_once() -> None:
    net = Net(WEIGHTS + np.float32(0.001))

    trial = tried(net)

    assert net.rows == ROWS
    assert trial.verdict.passes
    assert not trial.given_up
    assert trial.verdict.n == ROWS


def test_a_ruined_candidate_is_given_up_soon() -> None:
    net = Net(WEIGHTS[::-1].copy())

    trial = tried(net)

    assert net.rows <= 256
    assert trial.given_up
    assert not trial.verdict.passes
    assert trial.verdict.reason.startswith(f"rejected early, after {net.rows} of 2,000 examples: ")


def test_a_trial_that_went_on_after_a_part_is_one_that_was_made_at_once() -> None:
    net = Net(WEIGHTS + np.float32(0.001))

    part = tried(net, most=512)
    asked = net.rows
    whole = tried(net, begun=part)

    assert (asked, net.rows) == (512, ROWS)
    assert part.is_part
    assert not whole.is_part
    assert part.verdict.n == 512
    assert part.verdict.reason.startswith("on the first 512 of 2,000 examples, ")
    assert whole.verdict == tried(net).verdict


def test_a_part_is_enough_to_give_up_a_ruined_candidate() -> None:
    trial = tried(Net(WEIGHTS[::-1].copy()), most=512)

    assert trial.given_up
    assert not trial.is_part


def test_a_candidate_that_loses_a_little_is_asked_everything_and_rejected() -> None:
    trial = tried(Net(WEIGHTS + np.array([[0, 0], [0, 0], [0.15, -0.15], [0, 0]], np.float32)))

    assert not trial.given_up
    assert not trial.verdict.passes
    assert trial.verdict.n == ROWS


def test_a_failing_candidate_is_given_up_at_its_first_look() -> None:
    trial = tried(Net(WEIGHTS, fails_at=30))

    assert trial.given_up
    assert "it fails on" in trial.verdict.reason
    assert "out of memory" in trial.verdict.reason


def test_time_that_is_up_is_told_in_the_verdict() -> None:
    trial = tried(Net(WEIGHTS), deadline=0.0)

    assert trial.is_part
    assert trial.verdict.n == 8
    assert trial.verdict.passes
    assert "judged on 8 of 2,000 examples, as the time limit was reached" in trial.verdict.warning


def test_examples_without_labels_judge_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match="use fidelity"):
        try_candidate(
            Net(WEIGHTS).run,
            Examples(inputs=EXAMPLES.inputs),
            BASE,
            metric=choose_metric(LABELS, BASE),
            max_loss=0.01,
            rng=np.random.default_rng(0),
        )
