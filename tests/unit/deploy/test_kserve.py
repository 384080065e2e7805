from typing import Any

import pytest

from headrace.core import FailedPreconditionError
from headrace.deploy import (
    Artifact,
    ClusterTarget,
    KserveOptions,
    NotExpressibleError,
    kserve,
)
from tests.unit.deploy.specs import PODS, bodies, facts_of, split

_STORAGE = "s3://b/{endpoint}/{model}/{version}/{file}"


def _service(said: dict[str, Any], **options: Any) -> dict[str, Any]:  # noqa: ANN401  # of KserveOptions
    facts = facts_of(said)
    export = kserve(facts, ClusterTarget(), KserveOptions(storage=_STORAGE, pods=PODS, **options))
    (service,) = bodies(export, "InferenceService")
    found: dict[str, Any] = service
    return found


def test_the_newer_version_of_a_split_is_the_canary() -> None:
    predictor = _service({"versions": split(80, 20), "timeout_s": 2.5})["spec"]["predictor"]

    assert predictor["canaryTrafficPercent"] == 20
    assert predictor["model"]["storageUri"] == "s3://b/fraud/fraud/2/model.onnx"
    assert predictor["model"]["modelFormat"] == {"name": "onnx"}
    assert predictor["model"]["protocolVersion"] == "v2"
    assert predictor["timeout"] == 3


def test_a_language_model_is_refused() -> None:
    with pytest.raises(FailedPreconditionError, match=r"language model \(gguf\), whose API"):
        _service({"runtime": "gguf"})


def test_one_version_gets_all_requests() -> None:
    predictor = _service({"replicas": 3})["spec"]["predictor"]

    assert "canaryTrafficPercent" not in predictor
    assert (predictor["minReplicas"], predictor["maxReplicas"]) == (3, 3)


def test_scaling_goes_by_concurrency_with_knatives_windows_in_their_bounds() -> None:
    scaling = {
        "min_replicas": 0,
        "max_replicas": 7,
        "target_in_flight": 4.7,
        "stable_window_s": 1,
        "panic_window_s": 1,
        "scale_down_delay_s": 9000,
    }
    service = _service({"autoscale": scaling})

    predictor = service["spec"]["predictor"]
    assert predictor["scaleMetric"] == "concurrency"
    assert (predictor["minReplicas"], predictor["scaleTarget"]) == (0, 4)
    told = service["metadata"]["annotations"]
    assert told["autoscaling.knative.dev/window"] == "6s"
    assert told["autoscaling.knative.dev/scale-down-delay"] == "3600s"


def test_our_runtime_reads_the_settings_that_each_service_brings() -> None:
    export = kserve(facts_of(), ClusterTarget(), KserveOptions(storage=_STORAGE, pods=PODS))

    (runtime,) = bodies(export, "ServingRuntime")
    (settings,) = bodies(export, "ConfigMap")
    (service,) = bodies(export, "InferenceService")
    predictor = service["spec"]["predictor"]
    assert predictor["model"]["runtime"] == runtime["metadata"]["name"]
    assert predictor["volumes"][0]["configMap"]["name"] == settings["metadata"]["name"]
    assert '"path": "/mnt/models/model.onnx"' in settings["data"]["replica.json"]
    (container,) = runtime["spec"]["containers"]
    assert container["name"] == "kserve-container"


def test_another_runtime_is_only_named() -> None:
    export = kserve(
        facts_of(), ClusterTarget(), KserveOptions(storage=_STORAGE, runtime="kserve-mlserver")
    )

    assert [one["kind"] for one in bodies(export)] == ["InferenceService"]


@pytest.mark.parametrize(
    ("said", "options", "told"),
    [
        ({"versions": split(40, 30, 30)}, {}, r"this split has 3"),
        ({"versions": split(100, 0)}, {}, r"versions\[1\]\.weight: does not route by version"),
        ({"timeout_s": None}, {}, r"timeout_s: always has a timeout"),
        ({"labels": {"out": ["a"]}}, {"runtime": "other"}, r"labels: is a setting of Headrace's"),
        ({"batching": {"max_batch_size": 2}}, {"runtime": "other"}, r"batching: is a setting"),
    ],
)
def test_what_kserve_has_no_words_for_is_refused(
    said: dict[str, Any], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(NotExpressibleError, match=told):
        _service(said, **options)


def test_a_format_that_nobody_knows_has_to_be_said() -> None:
    facts = facts_of(artifacts={"fraud:2": Artifact(filename="model.bin")})
    with pytest.raises(NotExpressibleError, match=r"set `runtime:` of 'fraud'"):
        kserve(facts, ClusterTarget(), KserveOptions(storage=_STORAGE, pods=PODS))
