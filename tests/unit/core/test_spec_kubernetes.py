from typing import Any

import pytest

from headrace.core.spec.kubernetes import Autoscaler, KubernetesSpec
from headrace.core.spec.parse import SpecError, parse_spec


def parse(kubernetes: dict[str, Any], **endpoint: Any) -> KubernetesSpec:  # noqa: ANN401  # as a document has it
    document = {
        "endpoints": [{"name": "digits", "model": "digits:1", **endpoint}],
        "kubernetes": kubernetes,
    }
    return parse_spec(document).kubernetes


def mistakes(kubernetes: dict[str, Any], **endpoint: Any) -> str:  # noqa: ANN401  # as above
    with pytest.raises(SpecError) as caught:
        parse(kubernetes, **endpoint)
    return str(caught.value)


def test_nothing_need_be_said() -> None:
    assert parse({}) == KubernetesSpec()


def test_endpoints_may_have_pods_of_their_own() -> None:
    settings = parse({"endpoints": {"digits": {"resources": {"memory": "8Gi"}}}})

    assert settings.pods_of("digits").resources.memory == "8Gi"
    assert settings.pods_of("other").resources.memory == "1Gi"


def test_an_endpoint_inherits_the_fields_that_it_does_not_set() -> None:
    env = [{"name": "A", "value": "1"}]
    own = {"node_selector": {}, "resources": {"memory": "8Gi"}, "model_volume": {"claim": "m"}}
    settings = parse(
        {
            "node_selector": {"pool": "cpu"},
            "replica_env": env,
            "node_cache": {"claim": "c"},
            "endpoints": {"digits": own},
        }
    )

    pods = settings.pods_of("digits")

    assert [variable.name for variable in pods.replica_env] == ["A"]
    assert pods.node_selector == {}
    assert (pods.node_cache, pods.resources.memory) == (None, "8Gi")


@pytest.mark.parametrize("level", ["all", "own"])
def test_a_gpu_endpoint_without_a_gpu_is_refused(level: str) -> None:
    pods: dict[str, Any] = {"resources": {"gpus": 0}}
    kubernetes = pods if level == "all" else {"endpoints": {"digits": pods}}

    assert "device cuda needs a GPU" in mistakes(kubernetes, device="cuda")
    claim = {"spec": {"resourceClaims": [{"name": "gpu", "resourceClaimName": "a"}]}}
    parse({**kubernetes, "pod_template": claim}, device="cuda")
    parse(kubernetes, device="cpu")


def test_pools_may_have_pods_of_their_own() -> None:
    document = {
        "endpoints": [],
        "pools": [{"name": "small"}],
        "kubernetes": {"pools": {"small": {"resources": {"memory": "8Gi"}}}},
    }

    settings = parse_spec(document).kubernetes

    assert settings.pools["small"].resources.memory == "8Gi"


@pytest.mark.parametrize(
    ("kubernetes", "said"),
    [
        ({"resources": {"memory": "lots"}}, "kubernetes.resources.memory"),
        ({"resources": {"gpus": -1}}, "kubernetes.resources.gpus"),
        ({"node_selector": {"a b": "c"}}, "kubernetes.node_selector"),
        ({"tolerations": [{"operator": "Equal"}]}, "needs 'key'"),
        ({"tolerations": [{"key": "a", "operator": "Exists", "value": "b"}]}, "remove it"),
        ({"replica_env": [{"name": "A"}]}, "needs either 'value'"),
        ({"replica_env": [{"name": "A", "secret": "s"}]}, "must be set together"),
        ({"replica_env": [{"name": "1A", "value": "x"}]}, "kubernetes.replica_env"),
        ({"image": "has space"}, "kubernetes.image"),
        ({"endpoints": {"nobody": {}}}, "there is no endpoint 'nobody'"),
        ({"pools": {"digits": {}}}, "there is no pool 'digits'"),
        ({"autoscaler": "mine"}, "kubernetes.autoscaler"),
        ({"autoscaler": "keda"}, "needs 'prometheus_url'"),
        ({"imagee": "x"}, "kubernetes.imagee"),
        ({"pod_labels": {"headrace.dev/model": "x"}}, "use another prefix"),
        ({"model_volume": {}}, "needs either 'claim' or 'image'"),
        ({"model_volume": {"claim": "a", "path": "../x"}}, "must not contain '..'"),
        ({"model_volume": {"claim": "a", "path": "/x"}}, "kubernetes.model_volume.path"),
        ({"node_cache": {"claim": "a", "path": "/x"}}, "needs either 'path' or 'claim'"),
        (
            {"node_cache": {"claim": "a"}, "model_volume": {"claim": "b"}},
            "exclude each other",
        ),
    ],
)
def test_a_mistake_is_named(kubernetes: dict[str, Any], said: str) -> None:
    assert said in mistakes(kubernetes)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        ({}, "set 'target_in_flight'"),
        ({"target_in_flight": 4.0, "min_replicas": 0}, "1 or more"),
        ({"target_in_flight": 4.0, "target_queue_wait_s": 0.1}, "only 'target_in_flight'"),
        (
            {
                "target_in_flight": 4.0,
                "schedule": [{"cron": "0 8 * * *", "duration_s": 60.0, "min_replicas": 2}],
            },
            "only autoscaler headrace does",
        ),
    ],
)
def test_what_an_hpa_cannot_be_told_is_refused_at_the_door(
    scale: dict[str, Any], said: str
) -> None:
    assert said in mistakes({"autoscaler": "hpa"}, autoscale=scale)


def test_what_an_hpa_can_be_told_is_taken() -> None:
    settings = parse({"autoscaler": "hpa"}, autoscale={"target_in_flight": 4.0})

    assert settings.autoscaler is Autoscaler.HPA
