"""Export of an endpoint as a KServe InferenceService, with its scaling.

https://kserve.github.io/website/docs/reference/crd-api
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes import pods as driver_pods
from headrace.control.kubernetes.names import InstallationName
from headrace.control.kubernetes.pods import (
    AS_FIRST,
    HTTP_PORT,
    METRICS_PORT,
    SETTINGS_DIR,
    resources_of,
    scheduling_of,
    variables_of,
)
from headrace.core.devices import Device
from headrace.core.spec.kubernetes import PodsSpec, ResourcesSpec
from headrace.core.spec.scale import AutoscaleSpec
from headrace.deploy.export import (
    INSTANCE,
    Body,
    ClusterTarget,
    Export,
    ExportDocument,
    finish,
    implied_access,
    labels,
    manifest,
    object_name,
)
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import ExportNote, ExportTarget, Loss
from headrace.deploy.pods import (
    ANY_MODEL,
    PodOptions,
    image_and_resources,
    image_losses,
    installation_of,
    model_losses,
    pods_of,
    replica_container,
    settings_map,
)

_LONGEST_WINDOW_S: Final = 3600
_SHORTEST_WINDOW_S: Final = 6
_KNATIVE: Final = "autoscaling.knative.dev"


def replicas_of(endpoint: Endpoint, version: Version) -> Body:
    """Return the replica bounds of a service, and its scaling metric."""
    scaling = endpoint.spec.autoscale
    if scaling is None:
        return {"minReplicas": version.replicas, "maxReplicas": version.replicas}
    replicas: Body = {"minReplicas": scaling.min_replicas, "maxReplicas": scaling.max_replicas}
    if scaling.target_in_flight is not None:
        replicas["scaleMetric"] = "concurrency"
        replicas["scaleTarget"] = max(math.floor(scaling.target_in_flight), 1)
    return replicas


def annotations_of(scaling: AutoscaleSpec) -> dict[str, str]:
    """Return the annotations of Knative's autoscaler, within its bounds for one revision."""
    window = _bounded(scaling.stable_window_s, _SHORTEST_WINDOW_S, _LONGEST_WINDOW_S)
    panic_percent = _bounded(100 * scaling.panic_window_s / window, 1, 100)
    panic_from = _bounded(scaling.panic_ratio * 100, 110, 1000)
    delay = _bounded(scaling.scale_down_delay_s, 0, _LONGEST_WINDOW_S)
    return {
        f"{_KNATIVE}/window": f"{window}s",
        f"{_KNATIVE}/panic-window-percentage": f"{panic_percent}.0",
        f"{_KNATIVE}/panic-threshold-percentage": f"{panic_from}.0",
        f"{_KNATIVE}/scale-down-delay": f"{delay}s",
        f"{_KNATIVE}/scale-to-zero-pod-retention-period": f"{round(scaling.idle_s)}s",
    }


def _bounded(value: float, minimum: int, maximum: int) -> int:
    return min(max(round(value), minimum), maximum)


RUNTIME: Final = "headrace"
_RUNTIME_API: Final = "serving.kserve.io/v1alpha1"
_MODELS_DIR: Final = "/mnt/models"
_FORMATS: Final = {
    "torchscript": "pytorch",
    "torch_export": "pytorch",
    "savedmodel": "tensorflow",
    "openvino": "openvino",
}
"""KServe's name of a runtime's format, where it differs."""
_OWN_FORMATS: Final = (
    *("onnx", "xgboost", "lightgbm", "catboost", "sklearn", "pytorch", "tensorflow", "tflite"),
    *("openvino", "pipeline", "python", "optimized"),
)
_SUFFIXES: Final = {
    ".onnx": "onnx",
    ".ubj": "xgboost",
    ".cbm": "catboost",
    ".skops": "sklearn",
    ".pt2": "torch_export",
    ".tflite": "tflite",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KserveOptions:
    """Options of the target."""

    storage: str
    """URI with `{endpoint}`, `{version}`, `{model}`, `{file}` for each version."""

    runtime: str = ""
    """An existing ServingRuntime; empty exports Headrace's."""
    pods: PodOptions = field(default_factory=PodOptions)


def kserve(facts: ExportFacts, target: ClusterTarget, options: KserveOptions) -> Export:
    """Export an InferenceService per endpoint, and Headrace's ServingRuntime unless one is set.

    Raises:
        NotExpressibleError: KServe cannot express the spec.
    """
    documents: list[ExportDocument] = []
    if not options.runtime:
        documents.append(_runtime(facts, target, options))
    for endpoint in facts.endpoints:
        documents += _documents(facts, endpoint, target, options)
    losses = [
        *implied_access(
            facts,
            "this target does not authenticate",
            "set `access: public`, or add Istio's policies",
        ),
        *model_losses(facts, fetched=False),
        *(() if options.runtime else image_losses(facts, options.pods)),
        *(loss for e in facts.endpoints for loss in _losses(facts, e, options)),
    ]
    notes = [
        ExportNote(
            "the older version must be ready before this is applied: export it alone "
            "first (--stable)",
            f"{e.location}.versions",
        )
        for e in facts.endpoints
        if len(e.split) > 1
    ]
    return finish(ExportTarget.KSERVE, facts, documents, losses=losses, notes=notes)


def kserve_runtime(image: str, image_registry: str) -> Export:
    """Export a ClusterServingRuntime that serves the model of any InferenceService.

    Args:
        image: Image of replicas; empty for that of this version in `image_registry`.
        image_registry: Registry and path of the images.

    Raises:
        FailedPreconditionError: Both are empty.
    """
    container = driver_pods.replica_container(
        ANY_MODEL,
        PodsSpec(image=image),
        InstallationName(namespace="", image_registry=image_registry.rstrip("/")),
    )
    container["command"] = [*AS_FIRST, "headrace", "serve"]
    # KServe puts the InferenceService's name into its runtime's arguments.
    container["args"] = [
        _MODELS_DIR,
        "--name={{.Name}}",
        "--host=0.0.0.0",
        f"--http-port={HTTP_PORT}",
        f"--metrics-port={METRICS_PORT}",
        "--home=/tmp/headrace",
    ]
    metrics = {"port": str(HTTP_PORT), "path": "/metrics"}
    spec = _runtime_spec(container) | {
        "annotations": {f"prometheus.kserve.io/{key}": value for key, value in metrics.items()}
    }
    metadata = {"name": RUNTIME, "labels": labels(INSTANCE, "replica")}
    runtime = manifest(_RUNTIME_API, "ClusterServingRuntime", metadata, spec=spec)
    return Export(target=ExportTarget.KSERVE, documents=(runtime,))


def _runtime(facts: ExportFacts, target: ClusterTarget, options: KserveOptions) -> ExportDocument:
    name = RUNTIME if target.instance == RUNTIME else object_name(target.instance)
    spec = _runtime_spec(replica_container(facts, target, options.pods))
    metadata = target.metadata(name, labels(target.instance, "replica"))
    return manifest(_RUNTIME_API, "ServingRuntime", metadata, spec=spec)


def _runtime_spec(container: Body) -> Body:
    """Return the spec of a runtime with this container of the driver's pods."""
    # KServe mounts the model, and each service has its settings.
    container["name"] = "kserve-container"
    container["volumeMounts"] = [m for m in container["volumeMounts"] if m["name"] == "tmp"]
    container["ports"] = [{"containerPort": HTTP_PORT, "name": "http1", "protocol": "TCP"}]
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        container[probe]["httpGet"]["port"] = HTTP_PORT
    del container["startupProbe"], container["lifecycle"]  # Knative has neither
    formats = [{"name": model_format, "autoSelect": False} for model_format in _OWN_FORMATS]
    return {
        "supportedModelFormats": formats,
        "protocolVersions": ["v1", "v2"],
        "containers": [container],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }


def _documents(
    facts: ExportFacts, endpoint: Endpoint, target: ClusterTarget, options: KserveOptions
) -> Iterator[ExportDocument]:
    version = endpoint.newest
    name = object_name(target.instance, endpoint.name)
    named = labels(target.instance, "replica", endpoint=endpoint.name)
    settings = ""
    if not options.runtime:
        config_map = settings_map(target, facts, endpoint, version, directory=_MODELS_DIR)
        settings = config_map.body["metadata"]["name"]
        yield config_map
    pods = pods_of(facts, endpoint, options.pods)
    metadata = target.metadata(name, {**pods.pod_labels, **named})
    scaling = endpoint.spec.autoscale
    annotations = {
        **pods.pod_annotations,
        **(annotations_of(scaling) if scaling is not None else {}),
    }
    if annotations:
        metadata["annotations"] = annotations
    own = {} if options.runtime else image_and_resources(facts, endpoint, target, options.pods)
    spec = {"predictor": _predictor(endpoint, target, options, pods, settings=settings, own=own)}
    yield manifest("serving.kserve.io/v1beta1", "InferenceService", metadata, spec=spec)


def _predictor(
    endpoint: Endpoint,
    target: ClusterTarget,
    options: KserveOptions,
    pods: PodsSpec,
    *,
    settings: str,
    own: Body,
) -> Body:
    version = endpoint.newest
    # The additions of a service to its runtime's container.
    is_ours = not options.runtime
    container: Body = {**own}
    if is_ours or pods.pull_policy != PodsSpec().pull_policy:
        container["imagePullPolicy"] = pods.pull_policy
    if not is_ours and pods.resources != ResourcesSpec():
        container["resources"] = resources_of(pods.resources, Device(endpoint.spec.device))
    if pods.replica_env:
        container["env"] = variables_of(pods.replica_env)
    model: Body = {
        "modelFormat": {"name": _format(endpoint, version) or "unknown"},
        "protocolVersion": "v2",
        "runtime": options.runtime or (RUNTIME if target.instance == RUNTIME else target.instance),
        "storageUri": _storage(endpoint, version, options.storage),
        **container,
    }
    scheduling = scheduling_of(pods, installation_of(target, options.pods))
    predictor: Body = {**replicas_of(endpoint, version), **scheduling}
    if endpoint.spec.timeout_s is not None:
        predictor["timeout"] = max(math.ceil(endpoint.spec.timeout_s), 1)
    if version.weight < 100 and len(endpoint.split) > 1:  # noqa: PLR2004  # percent: all of it
        predictor["canaryTrafficPercent"] = version.weight
    if not options.runtime:
        model["volumeMounts"] = [{"name": "settings", "mountPath": SETTINGS_DIR, "readOnly": True}]
        predictor["volumes"] = [{"name": "settings", "configMap": {"name": settings}}]
    return {**predictor, "model": model}


def _format(endpoint: Endpoint, version: Version) -> str:
    """Return KServe's name of the model's format; empty if unknown."""
    artifact = version.artifact
    suffix = f".{artifact.filename.rpartition('.')[2]}" if artifact else ""
    detected = (artifact.runtime if artifact else "") or _SUFFIXES.get(suffix, "")
    runtime = endpoint.spec.runtime or detected
    return _FORMATS.get(runtime, runtime)


def _storage(endpoint: Endpoint, version: Version, template: str) -> str:
    artifact = version.artifact
    variables = {
        "endpoint": endpoint.name,
        "version": version.number,
        "model": version.model.partition(":")[0].rpartition("/")[2],
        "file": artifact.filename if artifact else "",
    }
    for key, value in variables.items():
        template = template.replace(f"{{{key}}}", value)
    return template


def _losses(facts: ExportFacts, endpoint: Endpoint, options: KserveOptions) -> Iterator[Loss]:
    split = endpoint.split
    if len(split) > 2:  # noqa: PLR2004  # the old and the new one
        yield Loss(
            f"{endpoint.location}.versions",
            f"splits between the two newest versions, and this split has {len(split)}",
            "keep two, or export routes (`gateway-api`)",
        )
    for version in endpoint.versions:
        if version.weight == 0:
            yield Loss(
                f"{version.location}.weight",
                "does not route by version number",
                "leave it out, or create a separate endpoint for it",
            )
    if endpoint.spec.timeout_s is None:
        yield Loss(f"{endpoint.location}.timeout_s", "always has a timeout", "set a timeout")
    if endpoint.newest.upstream is None and not _format(endpoint, endpoint.newest):
        yield Loss(
            f"{endpoint.newest.location}.model",
            "needs the model's format, which is unknown",
            f"set `runtime:` of {endpoint.name!r}",
        )
    if options.runtime:
        yield from _foreign_losses(facts, endpoint, options.runtime)


def _foreign_losses(facts: ExportFacts, endpoint: Endpoint, runtime: str) -> Iterator[Loss]:
    """Yield losses of settings that only Headrace's replica has."""
    for name in ("batching", "labels", "device", "nulls"):
        is_set = name in endpoint.spec.model_fields_set
        if is_set and getattr(endpoint.spec, name) not in ({}, "auto", "nan"):
            yield Loss(
                f"{endpoint.location}.{name}",
                f"is a setting of Headrace's replica, not of runtime {runtime!r}",
                "leave --runtime out, or the setting",
            )
    kubernetes = facts.spec.kubernetes
    endpoint_pods = kubernetes.endpoints.get(endpoint.name)
    if (kubernetes if endpoint_pods is None else endpoint_pods).image:
        part = "" if endpoint_pods is None else f".endpoints[{endpoint.name}]"
        yield Loss(
            f"kubernetes{part}.image",
            f"is the image of Headrace's replica, not of runtime {runtime!r}",
            "leave --runtime out, or the image",
        )
