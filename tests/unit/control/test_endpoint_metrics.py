"""What metrics say of endpoints, by what the gateway counted and the control plane knows."""

import math
import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState, make_revision
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import RolloutRecord
from headrace.control.plane.metrics import (
    replica_families,
    request_families,
    rollout_families,
    token_families,
)
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.rollout import CanarySpec
from headrace.gateway import ArmStatistics, TokenStatistics
from headrace.gateway.statistics import TokenUse
from headrace.observe import BRIEF_TWO_DIGITS_S, TWO_DIGITS_S
from headrace.rollout.state import RolloutPhase, RolloutState, TrafficShares
from tests.metrics import exposed

Found = dict[tuple[str, ...], float]


def _arm(version: str, *, role: str = "", replicas: int = 1) -> DesiredArm:
    settings = ReplicaSettings(model_name="m", model_version=version, path=f"/m/{version}")
    revision = make_revision(endpoint=EndpointName("m"), model=f"m:{version}", settings=settings)
    return DesiredArm(revision=revision, weight=100, replicas=replicas, role=role)


def _state(*arms: DesiredArm) -> DesiredState:
    endpoint = DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=arms)
    return DesiredState(endpoints=(endpoint,))


def _samples(text: str, name: str, *labels: str) -> Found:
    """Values by these labels."""
    return {
        tuple(sample.labels[label] for label in labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
    }


def _counted(*latencies_s: float, **counts: int) -> ArmStatistics:
    """Latencies in buckets as Envoy's are: two digits."""
    found: dict[tuple[float, float], int] = {}
    for latency_s in latencies_s:
        exponent = math.floor(math.log10(latency_s)) - 1
        digits = math.floor(round(latency_s / 10.0**exponent, 6))
        bucket = (round(digits * 10.0**exponent, 9), 10.0**exponent)
        found[bucket] = found.get(bucket, 0) + 1
    return msgspec.structs.replace(
        ArmStatistics(requests=len(latencies_s), latency=found), **counts
    )


def test_requests_are_told_by_how_they_ended() -> None:
    arms = {("m", "1"): _counted(*[0.001] * 10, errors=1, rejections=2, abandoned=3)}

    text = exposed(request_families(_state(_arm("1")), arms))

    assert _samples(text, "headrace_endpoint_requests_total", "outcome") == {
        ("ok",): 4,
        ("error",): 1,
        ("rejected",): 2,
        ("abandoned",): 3,
    }


def test_both_arms_of_a_version_are_one() -> None:
    arms = {("m", "1"): _counted(0.001), ("m", "1~baseline"): _counted(0.002, 0.002)}

    text = exposed(request_families(_state(_arm("1"), _arm("1", role="baseline")), arms))

    found = _samples(text, "headrace_endpoint_latency_seconds_count", "endpoint", "version")
    assert found == {("m", "1"): 3}


def test_a_version_without_requests_counts_from_zero() -> None:
    text = exposed(request_families(_state(_arm("1")), {}))

    assert set(_samples(text, "headrace_endpoint_requests_total", "outcome").values()) == {0}
    assert _samples(text, "headrace_endpoint_latency_seconds_count") == {}


def test_requests_that_nobody_was_there_for_have_no_version() -> None:
    text = exposed(request_families(_state(_arm("1")), {("m", ""): _counted(0.001, errors=1)}))

    found = _samples(text, "headrace_endpoint_requests_total", "version", "outcome")
    assert found["", "error"] == 1


def test_what_the_gateway_remembers_of_former_endpoints_and_versions_is_not_told() -> None:
    arms = {("m", "7"): _counted(0.001), ("gone", "1"): _counted(0.001)}

    text = exposed(request_families(_state(_arm("1")), arms))

    found = _samples(text, "headrace_endpoint_requests_total", "endpoint", "version")
    assert set(found) == {("m", "1")}


@settings(max_examples=30)
@given(
    st.lists(st.floats(2e-6, 200), min_size=1, max_size=50),
    st.sampled_from([TWO_DIGITS_S, BRIEF_TWO_DIGITS_S]),
)
def test_each_request_is_below_the_bounds_that_it_is_below(
    latencies_s: list[float], bounds: tuple[float, ...]
) -> None:
    counted = _counted(*latencies_s)

    text = exposed(request_families(_state(_arm("1")), {("m", "1"): counted}, bounds))

    below = _samples(text, "headrace_endpoint_latency_seconds_bucket", "le")
    assert len(below) == len(bounds) + 1
    for bound in bounds:
        ends = counted.latency.items()
        true = sum(n for (lower, width), n in ends if lower + width <= bound * (1 + 1e-9))
        assert below[repr(bound),] == true
    assert below["+Inf",] == len(latencies_s)
    assert _samples(text, "headrace_endpoint_latency_seconds_sum") == {
        (): pytest.approx(sum(latencies_s), rel=0.051)
    }


@pytest.mark.parametrize("median_s", [0.001, 0.04, 3.0])
def test_quantiles_of_a_known_load_are_found_within_5_percent(median_s: float) -> None:
    chance = random.Random(1)  # noqa: S311  # a load, no secret
    latencies_s = sorted(median_s * math.exp(0.25 * chance.gauss()) for _ in range(5_000))

    text = exposed(request_families(_state(_arm("1")), {("m", "1"): _counted(*latencies_s)}))

    below = _samples(text, "headrace_endpoint_latency_seconds_bucket", "le")
    counts = [(float(bound), count) for (bound,), count in below.items()]
    for q in (0.5, 0.95, 0.99):
        rank = q * len(latencies_s)
        at = next(place for place, (_, count) in enumerate(counts) if count >= rank)
        (lower, seen), (upper, count) = counts[at - 1], counts[at]
        found = lower + (upper - lower) * (rank - seen) / (count - seen)
        assert found == pytest.approx(latencies_s[int(rank)], rel=0.05)


def _record(phase: RolloutPhase) -> RolloutRecord:
    endpoint = _state(_arm("1")).endpoints[0]
    state = RolloutState(
        settings=CanarySpec(),
        phase=phase,
        began=0.0,
        since=0.0,
        traffic=TrafficShares(candidate=20),
    )
    return RolloutRecord(
        id="r1", endpoint="m", created=0.0, source=endpoint, target=endpoint, state=state
    )


def test_a_rollout_is_in_one_phase_and_has_a_weight() -> None:
    text = exposed(rollout_families({"m": _record(RolloutPhase.PROGRESSING)}))

    phases = _samples(text, "headrace_rollout_phase", "endpoint", "rollout", "phase")
    assert len(phases) == len(RolloutPhase)
    assert [key for key, value in phases.items() if value] == [("m", "r1", "progressing")]
    assert _samples(text, "headrace_rollout_weight", "endpoint") == {("m",): 20}


def test_a_rollout_that_is_over_has_no_weight() -> None:
    text = exposed(rollout_families({"m": _record(RolloutPhase.ROLLED_BACK)}))

    assert _samples(text, "headrace_rollout_weight", "endpoint") == {}


REPLICA = Replica(
    name="m-1-1",
    serial=1,
    endpoint="m",
    version="1",
    revision_id="x",
    address="unix:/x",
    phase=ReplicaPhase.READY,
    since=0.0,
)


def test_replicas_are_told_as_wanted_and_as_ready() -> None:
    replicas = [
        REPLICA,
        replace(REPLICA, name="m-1-2", phase=ReplicaPhase.STARTING),
        replace(REPLICA, name="m-0-1", version="0"),
    ]

    text = exposed(replica_families(_state(_arm("1", replicas=3)), replicas))

    assert _samples(text, "headrace_replicas", "endpoint", "version", "state") == {
        ("m", "0", "desired"): 0,
        ("m", "0", "ready"): 1,
        ("m", "1", "desired"): 3,
        ("m", "1", "ready"): 1,
    }


def test_an_endpoint_that_was_scaled_to_zero_wants_none() -> None:
    endpoint = _state(_arm("1")).endpoints[0]
    asleep = DesiredState(
        endpoints=(
            DesiredEndpoint(
                name=endpoint.name, timeout_s=None, arms=endpoint.arms, scaled_to_zero=True
            ),
        )
    )

    text = exposed(replica_families(asleep, []))

    assert set(_samples(text, "headrace_replicas", "state").values()) == {0}


def test_tokens_are_counted_by_credential_and_times_are_in_opentelemetrys_buckets() -> None:
    statistics = TokenStatistics(
        counts=(
            TokenUse(endpoint="chat", version="2", input=1, output=9, reasoning=4),
            TokenUse(
                endpoint="chat",
                version="2",
                credential="key:alice",
                input=70,
                cached=30,
                output=5,
                unknown=1,
            ),
        ),
        times={
            "first_token_us": {("chat", "2"): {(0.24, 0.01): 3, (0.25, 0.01): 1}},
            "per_token_us": {},
        },
    )
    text = exposed(token_families(statistics))

    tokens = _samples(text, "headrace_tokens_total", "version", "credential", "type")
    assert tokens["2", "key:alice", "input"] == 70
    assert tokens["2", "key:alice", "cached"] == 30
    assert tokens["2", "", "output"] == 9
    assert tokens["2", "", "reasoning"] == 4
    unknown = _samples(text, "headrace_responses_without_usage_total", "credential")
    assert unknown == {("",): 0, ("key:alice",): 1}
    name = "gen_ai_server_time_to_first_token_seconds"
    below = _samples(text, f"{name}_bucket", "gen_ai_request_model", "version", "le")
    assert [below["chat", "2", le] for le in ("0.1", "0.25", "0.5", "+Inf")] == [0, 3, 4, 4]
