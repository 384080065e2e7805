"""Values of the Helm chart for a spec, and the chart's files."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any, Final

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scalarstring import LiteralScalarString

import headrace
from headrace.control.kubernetes import InstallationName, objects_of, settings_in
from headrace.control.kubernetes.pods import GRPC_PORT
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, DesiredState
from headrace.core import FailedPreconditionError
from headrace.core.spec.kubernetes import PodsSpec
from headrace.core.spec.parse import SystemSpec
from headrace.deploy.endpoint_resource import endpoint_definition
from headrace.deploy.features import Loss, accepted, unique_texts
from headrace.deploy.gateway_api import GRACE_S, duration
from headrace.deploy.helm_spec import (
    ArtifactFile,
    HelmExport,
    HelmMode,
    HelmOptions,
    Values,
    spec_losses,
    static_losses,
    variables_of,
    volumes_of,
    worker_models,
)
from headrace.deploy.helm_streams import job_model_losses, job_values, stream_values
from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.grafana import dashboard_json
from headrace.monitor.prometheus import alerting_rules, recording_rules
from headrace.monitor.slo import objectives_of, stream_promises_of

RULES: Final = "files/rules.yaml"
_TARGET_LABELS: Final = {"namespace": "HEADRACE_NAMESPACE", "job": "HEADRACE_INSTANCE"}
"""Labels by which the chart's monitors mark metrics; its templates insert the release's values."""
ENDPOINT_RESOURCE: Final = "crds/endpoints.yaml"


def rule_groups(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the groups of the chart's PrometheusRule for a valid spec document."""
    objectives, streams = objectives_of(document), stream_promises_of(document)
    groups: list[dict[str, Any]] = []
    for rules in (
        recording_rules(objectives, streams, target=_TARGET_LABELS),
        alerting_rules(objectives, target=_TARGET_LABELS),
    ):
        groups += rules["groups"]
    return groups


def chart_files() -> Mapping[str, str]:
    """Return the generated files by path in the chart; Helm does not evaluate their content."""
    groups = json.dumps({"groups": rule_groups({"version": 1})}, indent=1)
    files = {RULES: f"{groups}\n"}
    for dashboard in DASHBOARDS:
        text = json.dumps(dashboard_json(dashboard), indent=2)
        files[f"files/dashboards/headrace-{dashboard.name}.json"] = f"{text}\n"
    files[ENDPOINT_RESOURCE] = f"{json.dumps(endpoint_definition(), indent=1)}\n"
    return files


_WINDOW: Final = re.compile(r"\[([0-9]+s)\]")
_OURS: Final = "headrace.dev/"
_REGISTRY: Final = "chart.invalid"
"""Stands for the chart's `image.registry`, which is set at installation."""
_OWN_ENV: Final = ({"name": "HOME", "value": "/tmp"},)  # noqa: S108  # a volume of the pod's own


def version_values(
    endpoint: DesiredEndpoint,
    arm: DesiredArm,
    *,
    number: int,
    spec: Mapping[str, Any],
    installation: InstallationName,
) -> Values:
    """Return the values of one version.

    Args:
        number: Position of the arm in its endpoint.
        installation: Where the driver would create its objects. The chart sets names and namespace.

    Raises:
        FailedPreconditionError: It cannot run on a cluster; the message contains the remedy.
    """
    alone = msgspec.structs.replace(endpoint, arms=(with_grpc(arm),))
    desired = DesiredState(spec=dict(spec), endpoints=(alone,))
    pods = settings_in(desired).pods_of(endpoint.name)
    # The chart merges the patch itself, after the values of its other parts.
    plain = msgspec.structs.replace(pods, pod_template={}, endpoints={})
    installation = replace(installation, image_registry=_REGISTRY, pull_secrets=())
    manifests = objects_of(desired, installation=installation, settings=plain)
    objects = {manifest["kind"]: manifest for manifest in manifests}
    pod = objects["Deployment"]["spec"]["template"]
    (fetcher,) = pod["spec"]["initContainers"]
    timeout_s = endpoint.timeout_s
    values: Values = {
        "endpoint": str(endpoint.name),
        "arm": number + 1,
        "version": arm.revision.version,
        "revision": arm.revision.id,
        "model": arm.revision.model,
        "digest": fetcher["args"][0],
        "weight": arm.weight,
        "replicas": arm.replicas,
        "drainTimeoutSeconds": math.ceil(installation.drain_timeout_s),
        "requestTimeout": duration(0.0 if timeout_s is None else timeout_s + GRACE_S),
        "settings": objects["ConfigMap"]["data"]["replica.json"],
        "pod": dict(_pod_values(pod, pods)),
    }
    for kind, convert in (("HorizontalPodAutoscaler", _hpa), ("ScaledObject", _keda)):
        if kind in objects:
            values["autoscaling"] = convert(objects[kind]["spec"])
    return values


def with_grpc(arm: DesiredArm) -> DesiredArm:
    """Return a copy whose replicas also serve gRPC, as no Headrace gateway translates it.

    Its id and the names of its objects remain those of a control plane.
    """
    settings = msgspec.structs.replace(arm.revision.settings, grpc_port=GRPC_PORT)
    revision = msgspec.structs.replace(arm.revision, settings=settings)
    return msgspec.structs.replace(arm, revision=revision)


def arms_of(
    endpoints: tuple[DesiredEndpoint, ...],
) -> Iterator[tuple[int, DesiredEndpoint, DesiredArm]]:
    """Yield every version that runs in pods, with its position in its endpoint."""
    for endpoint in endpoints:
        for number, arm in enumerate(endpoint.arms):
            if arm.revision.upstream is None:
                yield number, endpoint, arm


def _pod_values(pod: Mapping[str, Any], pods: PodsSpec) -> Iterator[tuple[str, Any]]:
    """Yield the parts of a pod template that a spec can set."""
    (container,) = pod["spec"]["containers"]
    registry, _, rest = container["image"].partition("/")
    if registry == _REGISTRY:
        yield "imageName", rest.partition(":")[0]
    else:
        yield "image", container["image"]
    yield "imagePullPolicy", container["imagePullPolicy"]
    yield "resources", container["resources"]
    if env := [variable for variable in container["env"] if variable not in _OWN_ENV]:
        yield "env", env
    annotations = pod["metadata"]["annotations"]
    if others := {key: value for key, value in annotations.items() if not key.startswith(_OURS)}:
        yield "annotations", others
    if pods.pod_labels:
        yield "labels", pods.pod_labels
    volume, *_ = pod["spec"]["volumes"]
    source = {key: value for key, value in volume.items() if key != "name"}
    for name, value in (
        ("shmSize", pods.shm_size),
        ("modelVolume", pods.model_volume and source),
        ("nodeCache", pods.node_cache and source),
        ("template", pods.pod_template),
    ):
        if value:
            yield name, value
    for name in (
        "serviceAccountName", "runtimeClassName", "priorityClassName", "nodeSelector",
        "tolerations", "imagePullSecrets",
    ):  # fmt: skip
        if name in pod["spec"]:
            yield name, pod["spec"][name]


def _hpa(spec: Mapping[str, Any]) -> Values:
    (metric,) = spec["metrics"]
    return {
        "type": "hpa",
        "minReplicas": spec["minReplicas"],
        "maxReplicas": spec["maxReplicas"],
        "targetInFlight": metric["pods"]["target"]["averageValue"],
        "behavior": spec["behavior"],
    }


def _keda(spec: Mapping[str, Any]) -> Values:
    flight, *wait = (trigger["metadata"] for trigger in spec["triggers"])
    window = _WINDOW.search(flight["query"])
    if window is None:
        raise FailedPreconditionError(f"no window in {flight['query']!r}")
    values: Values = {
        "type": "keda",
        "minReplicas": spec["minReplicaCount"],
        "maxReplicas": spec["maxReplicaCount"],
        "targetInFlight": flight["threshold"],
        "window": window[1],
        "prometheusUrl": flight["serverAddress"],
        "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
    }
    if wait:
        values["targetQueueWaitSeconds"] = wait[0]["threshold"]
    return values


_TARGET: Final = "helm"


def helm_values(
    spec: SystemSpec,
    options: HelmOptions,
    *,
    stored: Mapping[str, ArtifactFile] | None = None,
    endpoints: tuple[DesiredEndpoint, ...] = (),
) -> HelmExport:
    """Return the chart's values for `spec`.

    Args:
        stored: Artifacts in the registry, by the model references of the spec; required for models
            of jobs and streams.
        endpoints: With `HelmMode.STATIC`: the endpoints, every model pinned.

    Raises:
        NotExpressibleError: The chart cannot express the spec; all reasons are listed.
        InvalidArgumentError: An allowed loss is not in the spec.
    """
    document = spec.document()
    losses = spec_losses(spec, options.mounts)
    values: Values = {"artifacts": {"url": options.artifacts}}
    losses += _add_workers(values, spec, document, options, stored or {})
    if options.mode is HelmMode.STATIC:
        losses += static_losses(spec)
        losses += _add_versions(values, spec, document, options, endpoints)
    else:
        values["spec"] = document
        # Ports of the Service; those of the pods are fixed.
        ports = {"httpPort": spec.gateway.http_port, "grpcPort": spec.gateway.grpc_port}
        values["gateway"] = {"service": {name: port for name, port in ports.items() if port}}
        values["control"] = volumes_of(options.mounts)
    values["workers"] = volumes_of(options.mounts)
    values["monitoring"] = {"prometheusRule": {"groups": rule_groups(spec.document())}}
    left_out = accepted(_TARGET, losses, options.allowed)
    notes = unique_texts(loss.left_out(_TARGET) for loss in left_out)
    return HelmExport(values=values, notes=(*notes, *_notes(values, options)))


def _add_workers(
    values: Values,
    spec: SystemSpec,
    document: dict[str, Any],
    options: HelmOptions,
    stored: Mapping[str, ArtifactFile],
) -> list[Loss]:
    """Add jobs and streams as separate objects, so that the control plane does not run them."""
    losses: list[Loss] = []
    is_separate = {
        "jobs": options.separate_jobs or options.mode is HelmMode.STATIC,
        "streams": options.separate_streams or options.mode is HelmMode.STATIC,
    }
    if is_separate["jobs"] and document.pop("jobs", None):
        values["jobs"] = []
        for i, job in enumerate(spec.jobs):
            location = f"jobs[{i}]"
            values_of_job, job_losses = job_values(job, location, stored.get(job.model), options)
            values["jobs"].append(values_of_job)
            losses += [*job_model_losses(spec, job, location), *job_losses]
    if is_separate["streams"] and (entries := document.pop("streams", None)):
        values["streams"] = []
        for i, (stream, entry) in enumerate(zip(spec.streams, entries, strict=True)):
            location = f"streams[{i}]"
            values_of_job, job_losses = stream_values(
                stream, entry, location, stored, options, stores=spec.online_stores
            )
            values["streams"].append(values_of_job)
            losses += job_losses
    reported_locations = {loss.location for loss in losses}
    losses += [
        Loss(
            location,
            f"is {model!r}, which the registry does not have",
            "push it (`headrace models push`), and export with the same --home",
        )
        for location, model in worker_models(spec)
        if is_separate[location.partition("[")[0]]
        and model not in stored
        and location not in reported_locations
    ]
    return losses


def _add_versions(
    values: Values,
    spec: SystemSpec,
    document: Mapping[str, Any],
    options: HelmOptions,
    endpoints: tuple[DesiredEndpoint, ...],
) -> list[Loss]:
    rows: list[Values] = []
    losses: list[Loss] = []
    locations = {endpoint.name: f"endpoints[{i}]" for i, endpoint in enumerate(spec.endpoints)}
    installation = InstallationName(namespace="default", artifacts_url=options.artifacts)
    for number, endpoint, arm in arms_of(endpoints):
        location = locations.get(endpoint.name, "endpoints")
        try:
            rows.append(
                version_values(
                    endpoint, arm, number=number, spec=document, installation=installation
                )
            )
        except FailedPreconditionError as error:
            source = f"{location}.versions[{number}]" if len(endpoint.arms) > 1 else location
            losses.append(Loss(source, str(error), "see the message"))
    values["workloads"] = {"mode": "static", "versions": rows}
    return losses


def _notes(values: Values, options: HelmOptions) -> list[str]:
    notes = []
    if not options.artifacts:
        notes.append("artifacts.url is empty: set --artifacts URL, or set it at installation")
    if names := variables_of([values.get("spec"), values.get("jobs"), values.get("streams")]):
        notes.append(
            f"the spec refers to variables ({', '.join(names)}): put them into a Secret and set "
            "environmentSecret to its name"
        )
    if any("autoscaling" in stream for stream in values.get("streams", ())):
        notes.append(
            "KEDA counts records, while the spec's target_lag_s is in seconds: set lagThreshold to "
            "target_lag_s times the records per second of one worker"
        )
    return notes


_PACKAGED: Final = Path(__file__).parent / "chart"
_LONG: Final = 200


def chart_folder() -> Path:
    """Return the chart of this version: in the package, or in the source checkout.

    Raises:
        FailedPreconditionError: The chart is in neither folder.
    """
    checkout = Path(headrace.__file__).parents[2] / "charts" / "headrace"
    for folder in (_PACKAGED, checkout):
        if (folder / "Chart.yaml").is_file():
            return folder
    raise FailedPreconditionError(
        f"the chart is neither in {_PACKAGED} nor in {checkout}: install headrace from its wheel"
    )


def check_folder(folder: Path) -> None:
    """Raise for a folder with foreign files: the chart's README.md would replace theirs.

    Raises:
        FailedPreconditionError: The folder contains files, but not Headrace's chart.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return
    metadata_file = folder / "Chart.yaml"
    try:
        named = YAML(typ="safe").load(metadata_file) if metadata_file.is_file() else None
    except (UnicodeDecodeError, YAMLError):
        named = None
    if not (isinstance(named, Mapping) and named.get("name") == "headrace"):
        raise FailedPreconditionError(
            f"'{folder}' contains files and is not Headrace's chart, so they could be overwritten: "
            "choose an empty or new folder"
        )


def chart_with(values: Mapping[str, Any], chart: Path) -> Mapping[str, bytes]:
    """Return all files of the chart by path, with `values` merged into its own."""
    files = {
        path.relative_to(chart).as_posix(): path.read_bytes()
        for path in sorted(chart.rglob("*"))
        if path.is_file()
    }
    # The chart's own values, with comments, updated with the given ones.
    text = files["values.yaml"].decode()
    yaml = YAML()
    yaml.width = 100
    document = yaml.load(text)
    _merge(document, values)
    out = StringIO()
    yaml.dump(document, out)
    return {**files, "values.yaml": out.getvalue().encode()}


def _merge(document: Any, values: Mapping[str, Any]) -> None:  # noqa: ANN401  # YAML with comments
    for key, value in values.items():
        # A spec is replaced as a whole: nothing of the chart's spec remains.
        if isinstance(value, Mapping) and isinstance(document.get(key), Mapping) and key != "spec":
            _merge(document[key], value)
        else:
            document[key] = _readable(value)


def _readable(value: Any) -> Any:  # noqa: ANN401  # any part of a document
    """Return a document with long texts as literal blocks."""
    if isinstance(value, Mapping):
        return {key: _readable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(item) for item in value]
    if isinstance(value, str) and "\n" in value and len(value) > _LONG:
        return LiteralScalarString(value)
    return value
