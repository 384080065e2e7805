"""Pods of a model version in a cluster that another system manages.

Pods, settings and their names are those of the driver; only the manager differs, and they also
serve gRPC, as no Headrace gateway translates it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.desired.resolve import Pinned, replica_settings
from headrace.control.kubernetes import names as driver
from headrace.control.kubernetes import pods as driver_pods
from headrace.control.kubernetes.pods import (
    CONTAINER,
    GRPC_PORT,
    HTTP_PORT,
    MODELS_DIR,
    SETTINGS_KEY,
    digest_of,
    model_path,
    settings_text,
)
from headrace.control.model.desired import Revision, make_revision
from headrace.core import EndpointName, FailedPreconditionError, ReplicaSettings
from headrace.core.images import OPENAI_RUNTIMES
from headrace.core.spec.kubernetes import PodsSpec
from headrace.deploy.export import MANAGER, Body, ClusterTarget, ExportDocument, manifest
from headrace.deploy.facts import Endpoint, ExportFacts, Version
from headrace.deploy.features import Loss

_DRIVER_ANNOTATIONS: Final = (driver.ENDPOINT, driver.REVISION_ID)
"""Annotations by which a control plane recognizes its own pods."""
_NO_REGISTRY: Final = "registry.invalid"
"""Registry in exports that leave out `kubernetes.image`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PodOptions:
    """Options of pods."""

    image: str = ""
    """Replica image; empty for the spec's."""
    image_registry: str = ""
    """Prefix of our images, from which the fitting one is used if the spec has none."""
    artifacts: str = ""
    """URL of models."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A version's workload: the ConfigMap of its pods, and their template."""

    settings: ExportDocument
    template: Body


ANY_MODEL: Final = make_revision(
    endpoint=EndpointName(""),
    model="",
    settings=ReplicaSettings(model_name="", model_version="", path=""),
)
"""Revision of a container that serves the models of several endpoints."""


def workload(
    target: ClusterTarget,
    facts: ExportFacts,
    endpoint: Endpoint,
    version: Version,
    options: PodOptions,
) -> Workload:
    """Return the workload of `version`; changed settings get a new name: old pods keep theirs."""
    revision = revision_of(facts, endpoint, version)
    installation = installation_of(target, options)
    pods = pods_of(facts, endpoint, options)
    digest = version.artifact.digest if version.artifact else ""
    path = model_path(revision, pods, digest=digest, filename=_filename(version))
    settings_json = settings_text(revision, installation, path=path)
    template = driver_pods.pod_template(
        revision,
        pods,
        digest=digest,
        path=path,
        settings_digest=digest_of(settings_json),
        installation=installation,
    )
    metadata = template["metadata"]
    metadata["labels"][driver.MANAGED_BY] = MANAGER
    for key in _DRIVER_ANNOTATIONS:
        del metadata["annotations"][key]
    return Workload(settings=_config_map(target, revision, settings_json), template=template)


def settings_map(
    target: ClusterTarget,
    facts: ExportFacts,
    endpoint: Endpoint,
    version: Version,
    *,
    directory: str,
) -> ExportDocument:
    """Return the ConfigMap of a version's replica settings; the model is in `directory`."""
    revision = revision_of(facts, endpoint, version)
    path = f"{directory}/{_filename(version)}".rstrip("/")
    settings_json = settings_text(revision, installation_of(target, PodOptions()), path=path)
    return _config_map(target, revision, settings_json)


def replica_container(facts: ExportFacts, target: ClusterTarget, options: PodOptions) -> Body:
    """Return the serving container, without settings of single endpoints."""
    pods = _with_image(facts.spec.kubernetes, options)
    plain = PodsSpec(image=pods.image, pull_policy=pods.pull_policy)
    container = driver_pods.replica_container(ANY_MODEL, plain, installation_of(target, options))
    assert container["name"] == CONTAINER
    del container["resources"]
    return container


def pods_of(facts: ExportFacts, endpoint: Endpoint, options: PodOptions) -> PodsSpec:
    """Return the pod settings of an endpoint."""
    return _with_image(facts.spec.kubernetes.pods_of(endpoint.name), options)


def image_and_resources(
    facts: ExportFacts,
    endpoint: Endpoint,
    target: ClusterTarget,
    options: PodOptions,
) -> Body:
    """Return the fields `image` and `resources` of the newest version's container."""
    revision = revision_of(facts, endpoint, endpoint.newest)
    pods = pods_of(facts, endpoint, options)
    container = driver_pods.replica_container(revision, pods, installation_of(target, options))
    return {name: container[name] for name in ("image", "resources")}


def revision_of(facts: ExportFacts, endpoint: Endpoint, version: Version) -> Revision:
    """Return the driver's revision of a version; its id is specific to exports.

    Raises:
        FailedPreconditionError: It is a language model, whose second port is not routed.
    """
    spec, artifact = endpoint.spec, version.artifact
    runtime = spec.runtime or (artifact.runtime if artifact else "")
    if runtime in OPENAI_RUNTIMES:
        raise FailedPreconditionError(
            f"{version.model} of {endpoint.location} is a language model ({runtime}), whose API is "
            "on a port that this target does not route; export helm runs it with Headrace's gateway"
        )
    pinned = Pinned(
        reference=version.model,
        version=version.number,
        path=Path(f"{MODELS_DIR}/{_filename(version)}"),
        runtime=runtime,
        sha256=artifact.sha256 if artifact else "",
        labels=artifact.labels if artifact else {},
        runs_code=bool(artifact and artifact.runs_code),
    )
    limit_bytes = spec.limits.max_body_bytes or facts.body_bytes
    settings = replica_settings(spec, endpoint.name, pinned, limit_bytes)
    return make_revision(
        endpoint=EndpointName(endpoint.name),
        model=version.model,
        settings=msgspec.structs.replace(settings, grpc_port=GRPC_PORT),
        network=spec.network,
        runs_code=pinned.runs_code,
    )


def service(
    target: ClusterTarget, name: str, selector: Body, metadata_labels: Body
) -> ExportDocument:
    """Return a Service for pods that match `selector`, for another system's load balancer."""
    ports: list[Body] = [
        {"name": "http", "port": HTTP_PORT, "targetPort": "http"},
        {
            "name": "grpc",
            "port": GRPC_PORT,
            "targetPort": "grpc",
            "appProtocol": "kubernetes.io/h2c",
        },
    ]
    spec: Body = {"selector": selector, "ports": ports}
    return manifest("v1", "Service", target.metadata(name, metadata_labels), spec=spec)


def image_losses(facts: ExportFacts, options: PodOptions) -> Iterator[Loss]:
    """Yield a loss if some endpoint has no image."""
    pods = [pods_of(facts, endpoint, options) for endpoint in facts.endpoints]
    if not options.image_registry and not all(own.image for own in pods):
        yield Loss(
            "kubernetes.image",
            "needs an image, and Headrace has no public registry",
            "push the images (`make push PREFIX=REGISTRY/PATH`) and set --image-registry",
        )


def model_losses(facts: ExportFacts, *, fetched: bool) -> Iterator[Loss]:
    """Yield losses of models that a pod could not fetch, or must not run.

    Args:
        fetched: Whether pods fetch them from the store, by digest.
    """
    for endpoint in facts.endpoints:
        version = endpoint.newest
        artifact = version.artifact
        if version.upstream is not None:
            continue
        if artifact is None or (fetched and not artifact.digest):
            yield Loss(
                f"{version.location}.model",
                f"fetches models by digest, and {version.model!r} is not in the registry",
                "push it (`headrace models push`) and set NAME:VERSION",
            )
        elif artifact.runs_code and not endpoint.spec.allow_code:
            yield Loss(
                f"{version.location}.model",
                "runs its author's code, which is not allowed",
                "set `allow_code: true` at the endpoint",
            )


def _filename(version: Version) -> str:
    return version.artifact.filename if version.artifact else ""


def installation_of(target: ClusterTarget, options: PodOptions) -> driver.InstallationName:
    """Return where the driver would create the objects."""
    return driver.InstallationName(
        namespace=target.namespace,
        instance=target.instance,
        artifacts_url=options.artifacts,
        image_registry=options.image_registry or _NO_REGISTRY,
    )


def _with_image(pods: PodsSpec, options: PodOptions) -> PodsSpec:
    return msgspec.structs.replace(pods, image=options.image) if options.image else pods


def _config_map(target: ClusterTarget, revision: Revision, settings_json: str) -> ExportDocument:
    config_labels = driver.labels_of(revision, instance=target.instance) | {
        driver.MANAGED_BY: MANAGER
    }
    name = driver.name_of(revision, instance=target.instance)
    return manifest(
        "v1", "ConfigMap", target.metadata(name, config_labels), data={SETTINGS_KEY: settings_json}
    )
