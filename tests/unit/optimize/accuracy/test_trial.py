"""A ruined candidate costs little, and every other one is asked everything."""

import numpy as np
import pytest

from headrace.core import Array, InvalidArgumentError, RuntimeFailedError, Tensors
from headrace.optimize.accuracy import Examples, Trial, answers, choose_metric, try_candidate
from headrace.optimize.accuracy.examples import StackedRows

N = 2_000
X: Array = np.random.default_rng(0).normal(size=(N, 4)).astype(np.float32)
WEIGHTS: Array = np.array([[1, -1], [0.5, -0.5], [0, 0], [0.2, -0.2]], np.float32)
LABELS: Array = (X @ WEIGHTS + np.random.default_rng(1).normal(size=(N, 2)) * 0.5).argmax(axis=1)
EXAMPLES = Examples(inputs=StackedRows({"x": X}, has_batch_axis=True), labels=LABELS)


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
    begun: Trial | None = None,
) -> Trial:
    return try_candidate(
        net.run,
        EXAMPLES,
        BASE,
        metric=choose_metric(LABELS, BASE),
        max_loss=0.01,
        rng=np.random.default_rng(0),
        max_rows=64,
        deadline=deadline,
        most=most,
        begun=begun,
    )


def test_a_good_candidate_is_asked_everything_once() -> None:
    net = Net(WEIGHTS + np.float32(0.001))

    trial = tried(net)

    assert net.rows == N
    assert trial.verdict.passes
    assert not trial.given_up
    assert trial.verdict.n == N


def test_a_ruined_candidate_is_given_up_soon() -> None:
    net = Net(WEIGHTS[::-1].copy())

    trial = tried(net)

    assert net.rows <= 256
    assert trial.given_up
    assert not trial.verdict.passes
    assert trial.verdict.reason.startswith(f"given up after {net.rows} of 2,000 examples, as it is")


def test_a_trial_that_went_on_after_a_part_is_one_that_was_made_at_once() -> None:
    net = Net(WEIGHTS + np.float32(0.001))

    part = tried(net, most=512)
    asked = net.rows
    whole = tried(net, begun=part)

    assert (asked, net.rows) == (512, N)
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
    assert trial.verdict.n == N


def test_a_failing_candidate_is_given_up_at_its_first_look() -> None:
    trial = tried(Net(WEIGHTS, fails_at=30))

    assert trial.given_up
    assert "it fails on" in trial.verdict.reason
    assert "out of memory" in trial.verdict.reason


def test_time_that_is_up_is_told_in_the_verdict() -> None:
    trial = tried(Net(WEIGHTS), deadline=0.0)

    assert trial.is_part
    assert trial.verdict.n == 64
    assert trial.verdict.passes
    assert "judged on 64 of 2,000 examples, as time was up" in trial.verdict.warning


def test_examples_without_labels_judge_nothing() -> None:
    with pytest.raises(InvalidArgumentError, match="use the fidelity"):
        try_candidate(
            Net(WEIGHTS).run,
            Examples(inputs=EXAMPLES.inputs),
            BASE,
            metric=choose_metric(LABELS, BASE),
            max_loss=0.01,
            rng=np.random.default_rng(0),
        )
