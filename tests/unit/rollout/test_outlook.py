"""Expected times of decisions at a rate of requests."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    ErrorsSpec,
    LatencySpec,
    MetricsSpec,
    RewardSpec,
    RolloutSpec,
    ShadowSpec,
)
from headrace.rollout.outlook import EndpointLoad, Outlook, observed_load, outlook
from headrace.rollout.state import RolloutState
from tests.unit.rollout.driving import Driven

ONLY_ERRORS = MetricsSpec(rejections=None, latency=None, predictions=None)
LOW = EndpointLoad(requests_per_s=0.4, error_ratio=0.01)


def canary(*weights: int, **more: object) -> CanarySpec:
    steps = tuple(CanaryStepSpec(weight=weight, until="verdict") for weight in weights)
    return CanarySpec(steps=steps, metrics=ONLY_ERRORS, **more)  # type: ignore[arg-type]


def expected(settings: RolloutSpec, load: EndpointLoad = LOW) -> Outlook:
    found = outlook(settings, load)
    assert found is not None
    return found


@given(st.floats(0.01, 1000.0), st.floats(0.0, 0.2), st.integers(1, 99))
def test_ten_times_the_requests_take_a_tenth_of_the_time(
    per_s: float, error_ratio: float, weight: int
) -> None:
    settings = canary(weight, warmup_s=0.0)
    slow = expected(settings, EndpointLoad(requests_per_s=per_s, error_ratio=error_ratio))
    fast = expected(settings, EndpointLoad(requests_per_s=10 * per_s, error_ratio=error_ratio))

    assert slow.good_s == pytest.approx(10 * fast.good_s)
    assert fast.good_s >= 200 / (10 * per_s * min(weight, 100 - weight) / 100) * 0.999


@pytest.mark.parametrize("settings", [canary(10), canary(10, baseline=True), AbSpec()])
def test_a_wider_margin_is_decided_sooner(settings: RolloutSpec) -> None:
    def within(margin: float) -> Outlook:
        metrics = MetricsSpec(
            errors=ErrorsSpec(margin=margin), rejections=None, latency=None, predictions=None
        )
        return expected(type(settings)(metrics=metrics))

    assert within(0.05).good_s < within(0.02).good_s < within(0.005).good_s
    assert within(0.05).worse_s < within(0.005).worse_s < math.inf


def test_each_step_that_waits_for_a_verdict_takes_its_own_time() -> None:
    alone = [expected(canary(weight)).good_s for weight in (5, 25, 50)]
    pauses = (CanaryStepSpec(weight=1, pause_s=60.0), CanaryStepSpec(weight=5, until="verdict"))
    paused = expected(CanarySpec(steps=pauses, metrics=ONLY_ERRORS))

    assert alone == sorted(alone, reverse=True)
    assert expected(canary(5, 25, 50)).good_s == pytest.approx(sum(alone))
    assert paused.good_s == pytest.approx(60.0 + alone[0])


def test_the_slowest_metric_counts() -> None:
    latency = LatencySpec(margin_ratio=1.01, margin_s=0.0)
    both = MetricsSpec(rejections=None, predictions=None, latency=latency)
    steps = (CanaryStepSpec(weight=50, until="verdict"),)

    slower = expected(CanarySpec(steps=steps, metrics=both))

    assert slower.good_s > 10 * expected(canary(50)).good_s


def test_callers_who_stay_on_a_version_tell_less() -> None:
    callers = EndpointLoad(requests_per_s=4.0, error_ratio=0.01, independent_ratio=0.1)

    assert expected(canary(50), callers).good_s == pytest.approx(expected(canary(50)).good_s)


def test_the_text_names_both_times_the_rate_and_the_limit() -> None:
    few, many = expected(canary(50)), expected(canary(50), EndpointLoad(requests_per_s=2000.0))

    assert not few.suffices
    assert few.text.startswith(
        "at 0.4 requests/s a version as good as the old one has its verdict after about 14 h, one "
        "worse by twice the margin after about "
    )
    assert few.text.endswith(
        "; max_duration_s is 2 h: raise it, the new version's share or the margins"
    )
    assert many.suffices
    assert many.text.startswith("at 2,000 requests/s ")
    assert many.text.endswith("; max_duration_s is 2 h")


def test_without_requests_there_is_never_a_verdict() -> None:
    none = expected(canary(50), EndpointLoad(requests_per_s=0.0))

    assert (none.good_s, none.suffices) == (math.inf, False)
    assert none.text.startswith("no requests come")


@pytest.mark.parametrize(
    "settings",
    [
        BlueGreenSpec(),
        ShadowSpec(promotes=True),
        CanarySpec(steps=(CanaryStepSpec(weight=10, pause_s=60.0),)),
        AbSpec(
            metrics=MetricsSpec(
                errors=None, rejections=None, latency=None, predictions=None, reward=RewardSpec()
            )
        ),
    ],
)
def test_what_cannot_be_estimated_is_not(settings: RolloutSpec) -> None:
    assert outlook(settings, LOW) is None


def at_step(settings: CanarySpec) -> RolloutState:
    rollout = Driven.of(settings)
    rollout.looks(2)
    return rollout.state


@pytest.mark.parametrize("baseline", [False, True])
def test_the_load_is_that_of_the_whole_endpoint(baseline: bool) -> None:  # noqa: FBT001  # parametrized
    state = at_step(canary(20, baseline=baseline))
    compared = 400.0 if baseline else 1000.0
    counted = {
        "baseline_requests": compared - 200.0,
        "candidate_requests": 200.0,
        "independent_requests": compared,
        "counted_s": 100.0,
    }

    load = observed_load(state, counted)

    assert load is not None
    assert load.requests_per_s == pytest.approx(10.0)
    assert load.independent_ratio == 1.0
    sticky = observed_load(state, {**counted, "independent_requests": compared / 10})
    assert sticky is not None
    assert sticky.independent_ratio == pytest.approx(0.1)
    assert observed_load(state, {**counted, "counted_s": 0.0}) is None
