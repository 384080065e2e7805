"""Simulated outcomes of a plan at an endpoint's load."""

import msgspec

from headrace.core.spec.rollout import (
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    ErrorsSpec,
    MetricsSpec,
    ShadowSpec,
)
from headrace.rollout.outlook import EndpointLoad
from headrace.rollout.plan_simulation import (
    PlanSimulation,
    SimulationRequest,
    simulate_plan,
    why_not_simulated,
)

LOAD = EndpointLoad(requests_per_s=100.0, error_ratio=0.001)
PLAN = CanarySpec(
    steps=(CanaryStepSpec(weight=50, until="verdict"),),
    metrics=MetricsSpec(errors=ErrorsSpec(margin=0.2), latency=None, predictions=None),
    max_duration_s=60.0,
)


def test_a_good_version_is_promoted_and_a_bad_one_is_rolled_back() -> None:
    request = SimulationRequest(settings=PLAN, load=LOAD)
    sent = msgspec.json.decode(msgspec.json.encode(request), type=SimulationRequest)
    simulation = simulate_plan(sent)
    good, bad = simulation.outcomes

    assert sent == request
    assert msgspec.json.decode(msgspec.json.encode(simulation), type=PlanSimulation) == simulation
    assert good.promoted_ratio > 0.9
    assert good.median_s is not None
    assert bad.candidate == "errors 40 percentage points higher"
    assert bad.rolled_back_ratio > 0.9
    assert good.promoted_ratio + good.rolled_back_ratio + good.undecided_ratio == 1.0


def test_too_few_requests_decide_nothing() -> None:
    few = EndpointLoad(requests_per_s=0.1)
    simulation = simulate_plan(SimulationRequest(settings=PLAN, load=few))

    assert [outcome.undecided_ratio for outcome in simulation.outcomes] == [1.0, 1.0]
    assert simulation.outcomes[0].median_s is None
    assert simulation.duration_s == 60.0


def test_a_plan_without_a_comparison_says_why_it_is_not_simulated() -> None:
    approval = CanarySpec(steps=(CanaryStepSpec(weight=50, until="approval"),))

    assert why_not_simulated(PLAN, LOAD) == ""
    assert "compares no shares" in why_not_simulated(BlueGreenSpec(), LOAD)
    assert "compares no shares" in why_not_simulated(ShadowSpec(), LOAD)
    assert "fresh copies" in why_not_simulated(CanarySpec(baseline=True), LOAD)
    assert "no step" in why_not_simulated(approval, LOAD)
    assert "no requests" in why_not_simulated(PLAN, EndpointLoad(requests_per_s=0.0))
