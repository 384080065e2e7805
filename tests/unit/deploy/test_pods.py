"""An export's pods are the driver's: one shape of a replica's pod in the project."""

import copy
from typing import Any, Final

import msgspec
import pytest

from headrace.control.kubernetes import InstallationName as DriverPlace
from headrace.control.kubernetes.manifests import revision_objects
from headrace.control.kubernetes.names import name_of
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, make_revision
from headrace.core import EndpointName, ReplicaSettings
from headrace.deploy import (
    ArgoOptions,
    Artifact,
    ClusterTarget,
    ExportTarget,
    KserveOptions,
    NotExpressibleError,
    PodOptions,
    argo_rollouts,
    kserve,
)
from headrace.deploy.pods import revision_of
from tests.kube import complaints
from tests.unit.deploy.specs import ARTIFACTS, EXPORTERS, PODS, bodies, facts_of

_STORAGE: Final = "s3://b/{version}"
_TOLD: Final[dict[str, Any]] = {
    "image": "registry.test/replica:7",
    "pull_secrets": ["registry"],
    "resources": {"cpu": "2", "memory": "4Gi", "gpus": 1},
    "node_selector": {"accelerator": "h100"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "replica_env": [{"name": "TOKEN", "secret": "tokens", "key": "a"}],
    "service_account": "replicas",
    "runtime_class": "nvidia",
    "priority_class": "serving",
    "pod_annotations": {"mesh.test/inject": "no"},
}


def _driver_objects(said: dict[str, Any], kubernetes: dict[str, Any]) -> dict[str, Any]:
    """What the driver makes of the version that an export has, its settings included."""
    facts = facts_of(said, kubernetes=kubernetes)
    (endpoint,) = facts.endpoints
    exported = revision_of(facts, endpoint, endpoint.newest)
    path = f"/home/artifacts/sha256/{'2' * 64}/model.onnx"
    revision = make_revision(
        endpoint=EndpointName("fraud"),
        model="fraud:2",
        settings=msgspec.structs.replace(exported.settings, path=path),
    )
    arm = DesiredArm(revision=revision, weight=100, replicas=1)
    objects = revision_objects(
        DesiredEndpoint(name=EndpointName("fraud"), timeout_s=None, arms=(arm,)),
        arm,
        installation=DriverPlace(
            namespace="default", artifacts_url="s3://models", image_registry="registry.test"
        ),
        settings=facts.spec.kubernetes,
    )
    return {one["kind"]: one for one in objects}


def _template(said: dict[str, Any], kubernetes: dict[str, Any]) -> dict[str, Any]:
    export = EXPORTERS[ExportTarget.ARGO_ROLLOUTS](facts_of(said, kubernetes=kubernetes))
    (body,) = bodies(export, "Rollout")
    template: dict[str, Any] = copy.deepcopy(body["spec"]["template"])
    return template


@pytest.mark.parametrize("kubernetes", [{}, _TOLD, {"endpoints": {"fraud": _TOLD}}])
def test_an_exported_pod_is_the_drivers_of_a_replica_with_grpc_but_for_whose_it_is(
    kubernetes: dict[str, Any],
) -> None:
    said = {"batching": {"max_batch_size": 8}, "device": "cuda"}
    drivers = _driver_objects(said, kubernetes)
    mine, theirs = (
        _template(said, kubernetes),
        drivers["Deployment"]["spec"]["template"],
    )

    ports = mine["spec"]["containers"][0]["ports"]
    assert ports[1] == {"name": "grpc", "containerPort": 8001, "protocol": "TCP"}
    # Another's id is in names and labels, and nothing else differs.
    for template in (mine, theirs):
        del template["metadata"]["labels"]["headrace.dev/revision"]
        for each in template["spec"]["topologySpreadConstraints"]:
            each["labelSelector"]["matchLabels"].pop("headrace.dev/revision", None)
        (settings,) = (v for v in template["spec"]["volumes"] if v["name"] == "settings")
        assert settings["configMap"].pop("name").startswith("headrace-fraud-2-")
    assert mine["spec"] == theirs["spec"]
    changed = {"app.kubernetes.io/managed-by": "headrace-export"}
    assert mine["metadata"]["labels"] == theirs["metadata"]["labels"] | changed
    assert mine["metadata"]["annotations"].items() < theirs["metadata"]["annotations"].items()


def test_a_control_plane_takes_no_exported_pod_for_its_own() -> None:
    annotations = _template({}, {})["metadata"]["annotations"]

    assert not annotations.keys() & {"headrace.dev/endpoint", "headrace.dev/revision-id"}


@pytest.mark.parametrize("target", [ExportTarget.ARGO_ROLLOUTS, ExportTarget.KSERVE])
def test_pods_of_a_spec_fit_their_schemas(target: ExportTarget) -> None:
    assert complaints(bodies(EXPORTERS[target](facts_of(kubernetes=_TOLD)))) == []


def test_another_setting_is_another_config_map_so_that_old_pods_keep_theirs() -> None:
    export = EXPORTERS[ExportTarget.ARGO_ROLLOUTS]
    one, other = (
        bodies(export(facts_of({"batching": {"max_batch_size": size}})), "ConfigMap")
        for size in (8, 16)
    )

    assert one[0]["metadata"]["name"] != other[0]["metadata"]["name"]


def test_a_config_map_is_called_as_the_driver_calls_its_own() -> None:
    facts = facts_of()
    (endpoint,) = facts.endpoints
    (settings,) = bodies(EXPORTERS[ExportTarget.KSERVE](facts), "ConfigMap")

    revision = revision_of(facts, endpoint, endpoint.newest)
    assert settings["metadata"]["name"] == name_of(revision)


@pytest.mark.parametrize("target", [ExportTarget.ARGO_ROLLOUTS, ExportTarget.KSERVE])
def test_replicas_are_told_what_the_registry_knows_of_the_model(target: ExportTarget) -> None:
    artifact = Artifact(
        filename="model.onnx",
        version="2",
        digest=ARTIFACTS["fraud:2"].digest,
        runtime="onnx",
        sha256="2" * 64,
        labels={"out": ("no", "yes")},
    )
    facts = facts_of(artifacts={"fraud:2": artifact})

    (settings,) = bodies(EXPORTERS[target](facts), "ConfigMap")

    told = msgspec.json.decode(settings["data"]["replica.json"], type=ReplicaSettings)
    assert (told.sha256, told.labels) == ("2" * 64, {"out": ["no", "yes"]})
    assert (told.port, told.grpc_port, told.metrics_port) == (8000, 8001, 8002)


def test_an_image_that_is_asked_for_beside_the_spec_is_taken() -> None:
    facts, pods = facts_of(kubernetes=_TOLD), PodOptions(image="other.test/r:1", artifacts="s3://m")

    (rollout,) = bodies(argo_rollouts(facts, ClusterTarget(), ArgoOptions(pods=pods)), "Rollout")
    (service,) = bodies(
        kserve(facts, ClusterTarget(), KserveOptions(storage=_STORAGE, pods=pods)),
        "InferenceService",
    )

    spec = rollout["spec"]["template"]["spec"]
    images = {each["image"] for each in (*spec["containers"], *spec["initContainers"])}
    assert images == {"other.test/r:1"}
    assert service["spec"]["predictor"]["model"]["image"] == "other.test/r:1"


def test_each_inference_service_says_what_its_own_pods_are_like() -> None:
    kubernetes = {**_TOLD, "endpoints": {"fraud": {"resources": {"memory": "8Gi"}}}}

    export = kserve(
        facts_of(kubernetes=kubernetes), ClusterTarget(), KserveOptions(storage=_STORAGE, pods=PODS)
    )

    (runtime,) = bodies(export, "ServingRuntime")
    (container,) = runtime["spec"]["containers"]
    assert container["image"] == _TOLD["image"]
    # KServe merges both: what one endpoint must not inherit stands in neither.
    assert "resources" not in container
    assert [one["name"] for one in container["env"]] == ["HOME"]
    predictor = bodies(export, "InferenceService")[0]["spec"]["predictor"]
    assert predictor["model"]["resources"]["requests"]["memory"] == "8Gi"
    assert predictor["model"]["image"] == _TOLD["image"]
    assert predictor["nodeSelector"] == _TOLD["node_selector"]


def test_anothers_runtime_keeps_its_image_and_what_the_spec_leaves_open() -> None:
    options = KserveOptions(storage=_STORAGE, runtime="other")
    with pytest.raises(NotExpressibleError, match=r"kubernetes\.endpoints\[fraud\]\.image: is the"):
        kserve(facts_of(kubernetes={"endpoints": {"fraud": _TOLD}}), ClusterTarget(), options)

    plain = kserve(facts_of(), ClusterTarget(), options)
    told = kserve(
        facts_of(
            kubernetes={"endpoints": {"fraud": _TOLD}}, allowed=["kubernetes.endpoints[].image"]
        ),
        ClusterTarget(),
        options,
    )

    (model, own) = (
        bodies(each, "InferenceService")[0]["spec"]["predictor"]["model"] for each in (plain, told)
    )
    assert not model.keys() & {"image", "imagePullPolicy", "resources", "env"}
    assert own["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "image" not in own


def test_a_model_that_is_in_no_registry_may_be_left_out_by_leave() -> None:
    facts = facts_of(artifacts={}, allowed=["endpoints[].model"])

    (rollout,) = bodies(argo_rollouts(facts, ClusterTarget(), ArgoOptions(pods=PODS)), "Rollout")

    (fetch,) = rollout["spec"]["template"]["spec"]["initContainers"]
    assert fetch["args"][0] == ""
