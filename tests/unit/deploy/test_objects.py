"""Kubernetes and the projects' own schemas take what is exported, whatever the spec says."""

from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.deploy import (
    ClusterTarget,
    ExportTarget,
    GatewayApiOptions,
    LiveEndpoint,
    VersionShare,
    gateway_api,
    kserve_runtime,
)
from tests.kube import complaints
from tests.unit.deploy.specs import EXPORTERS, bodies, facts_of, split

_STEPS: Final = [
    {"weight": 10, "pause_s": 60},
    {"weight": 40, "until": "verdict"},
    {"weight": 80, "until": "approval"},
]
_ROLLOUTS: Final[dict[str, dict[str, Any]]] = {
    "none": {},
    "canary": {"rollout": {"strategy": "canary"}, "slo": {"latency_s": 0.2}},
    "steps": {"rollout": {"strategy": "canary", "steps": _STEPS}},
    "blue-green": {"rollout": {"strategy": "blue-green", "preview_s": 120, "keep_s": 60}},
    "approval": {"rollout": {"strategy": "blue-green", "approval": True}},
    "no metric": {
        "rollout": {
            "strategy": "canary",
            "metrics": {"errors": None, "rejections": None, "latency": None},
        }
    },
}


@pytest.mark.parametrize("rollout", list(_ROLLOUTS))
def test_a_rollout_fits_its_schema(rollout: str) -> None:
    facts = facts_of({**_ROLLOUTS[rollout], "replicas": 3, "timeout_s": 2.5})

    assert complaints(bodies(EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts))) == []


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"versions": split(80, 20), "timeout_s": 2.5},
        {"autoscale": {"min_replicas": 0, "max_replicas": 9, "target_in_flight": 4}},
        {"batching": {"max_batch_size": 8}, "device": "cpu", "labels": {"out": ["no", "yes"]}},
    ],
)
def test_an_inference_service_fits_its_schema(said: dict[str, Any]) -> None:
    assert complaints(bodies(EXPORTERS[ExportTarget.KSERVE](facts_of(said)))) == []


def test_a_cluster_serving_runtime_fits_its_schema() -> None:
    (runtime,) = bodies(kserve_runtime("registry.example/replica:1", ""))

    assert complaints([runtime]) == []
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == "registry.example/replica:1"
    assert {"name": "onnx", "autoSelect": False} in runtime["spec"]["supportedModelFormats"]


@given(
    weights=st.lists(st.integers(0, 100), min_size=1, max_size=40).map(
        lambda parts: [*parts, 100] if not sum(parts) else parts
    ),
    timeout_s=st.none() | st.floats(0.001, 86_400),
    name=st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z"),
    host=st.sampled_from(["", "models.example.com"]),
)
def test_routes_fit_their_schema(
    weights: list[int], timeout_s: float | None, name: str, host: str
) -> None:
    scaled = _percent(weights)
    rows = [{"model": f"fraud:{i}", "weight": w} for i, w in enumerate(scaled, 1)]
    is_too_many = sum(weight > 0 for weight in scaled) > 16
    facts = facts_of(
        {"name": name, "versions": rows, "timeout_s": timeout_s},
        allowed=("endpoints[].versions",) if is_too_many else (),
    )
    options = GatewayApiOptions(gateway="infra/public", hostnames=(host,) if host else ())

    objects = bodies(gateway_api(facts, ClusterTarget(), options))

    assert complaints(objects) == []
    names = [(one["kind"], one["metadata"]["name"]) for one in objects]
    assert len(set(names)) == len(names)
    assert all(len(one["spec"]["rules"]) <= 16 for one in objects)
    shares = [
        sum(ref.get("weight", 0) for ref in rule["backendRefs"])
        for one in objects
        for rule in one["spec"]["rules"]
        if len(rule["backendRefs"]) > 1
    ]
    assert is_too_many or set(shares) <= {100}


def test_a_rollout_half_way_goes_into_the_routes_with_its_shadow() -> None:
    shares = (
        VersionShare(version="1", weight=100, model="fraud:1"),
        VersionShare(version="2", weight=0, model="fraud:2"),
    )
    seen = {"fraud": LiveEndpoint(shares=shares, mirror="2", mirror_percent=30)}

    objects = bodies(EXPORTERS[ExportTarget.GATEWAY_API](facts_of(observed=seen)))

    assert complaints(objects) == []
    route = next(one for one in objects if one["metadata"]["name"] == "headrace-fraud")
    rule = route["spec"]["rules"][-1]
    assert [ref["weight"] for ref in rule["backendRefs"]] == [100]
    _, copies = rule["filters"]
    assert copies["requestMirror"]["percent"] == 30
    assert copies["requestMirror"]["backendRef"]["name"] == "headrace-fraud-2"


def _percent(parts: list[int]) -> list[int]:
    """`parts` scaled to a hundred in all."""
    total = sum(parts)
    scaled = [part * 100 // total for part in parts]
    scaled[parts.index(max(parts))] += 100 - sum(scaled)
    return scaled
