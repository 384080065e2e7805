"""Which values make the chart serve a spec? Pure: what registry and resolver know comes along."""

from collections.abc import Mapping
from typing import Any, Final

from headrace.control.desired import DesiredEndpoint
from headrace.control.kubernetes import Place
from headrace.core import FailedPreconditionError
from headrace.core.spec import SystemSpec
from headrace.deploy.helm_export import HelmExport, HelmOptions, Mode, Stored, Values, volumes_of
from headrace.deploy.helm_files import rule_groups
from headrace.deploy.helm_jobs import job_model_losses, job_values
from headrace.deploy.helm_spec import models_apart, spec_losses, static_losses, variables_of
from headrace.deploy.helm_streams import stream_values
from headrace.deploy.helm_versions import arms_of, version_values
from headrace.deploy.losses import Loss, accepted
from headrace.deploy.notes import told_once

_TARGET: Final = "helm"


def helm_values(
    spec: SystemSpec,
    options: HelmOptions,
    *,
    stored: Mapping[str, Stored] | None = None,
    endpoints: tuple[DesiredEndpoint, ...] = (),
) -> HelmExport:
    """The values by which the chart serves `spec`.

    Args:
        stored: What the registry has of models, by the spec's names; those that jobs and streams
            run by themselves have to be there.
        endpoints: With `Mode.STATIC`: the endpoints, every model pinned.

    Raises:
        NotExpressibleError: The spec says what the chart cannot express; all of it is named.
        InvalidArgumentError: What may be left out is not in the spec.
    """
    document = spec.document()
    losses = spec_losses(spec, options.mounts)
    values: Values = {"artifacts": {"url": options.artifacts}}
    losses += _add_apart(values, spec, document, options, stored or {})
    if options.mode is Mode.STATIC:
        losses += static_losses(spec)
        losses += _add_versions(values, spec, document, options, endpoints)
    else:
        values["spec"] = document
        values["gateway"] = _gateway(spec)
        values["control"] = volumes_of(options.mounts)
    values["workers"] = volumes_of(options.mounts)
    values["monitoring"] = {"prometheusRule": {"groups": rule_groups(spec.document())}}
    left_out = accepted(_TARGET, losses, options.allowed)
    notes = told_once(loss.left_out(_TARGET) for loss in left_out)
    return HelmExport(values=values, notes=(*notes, *_notes(values, options)))


def _add_apart(
    values: Values,
    spec: SystemSpec,
    document: dict[str, Any],
    options: HelmOptions,
    stored: Mapping[str, Stored],
) -> list[Loss]:
    """Jobs and streams as objects of their own; the control plane then does not run them too."""
    losses: list[Loss] = []
    is_apart = {
        "jobs": options.jobs_apart or options.mode is Mode.STATIC,
        "streams": options.streams_apart or options.mode is Mode.STATIC,
    }
    if is_apart["jobs"] and document.pop("jobs", None):
        values["jobs"] = []
        for i, job in enumerate(spec.jobs):
            place = f"jobs[{i}]"
            told, lost = job_values(job, place, stored.get(job.model), options)
            values["jobs"].append(told)
            losses += [*job_model_losses(spec, job, place), *lost]
    if is_apart["streams"] and (entries := document.pop("streams", None)):
        values["streams"] = []
        for i, (stream, entry) in enumerate(zip(spec.streams, entries, strict=True)):
            place = f"streams[{i}]"
            told, lost = stream_values(
                stream, entry, place, stored, options, stores=spec.online_stores
            )
            values["streams"].append(told)
            losses += lost
    lost_places = {loss.place for loss in losses}
    losses += [
        Loss(
            place,
            f"is {model!r}, which the registry does not have",
            "push it (`headrace models push`), and export with the same --home",
        )
        for place, model in models_apart(spec)
        if is_apart[place.partition("[")[0]] and model not in stored and place not in lost_places
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
    places = {endpoint.name: f"endpoints[{i}]" for i, endpoint in enumerate(spec.endpoints)}
    to = Place(namespace="default", artifacts_url=options.artifacts)
    for number, endpoint, arm in arms_of(endpoints):
        place = places.get(endpoint.name, "endpoints")
        try:
            rows.append(version_values(endpoint, arm, spec=document, place=to))
        except FailedPreconditionError as error:
            where = f"{place}.versions[{number}]" if len(endpoint.arms) > 1 else place
            losses.append(Loss(where, str(error), "see there"))
    values["workloads"] = {"mode": "static", "versions": rows}
    return losses


def _gateway(spec: SystemSpec) -> Values:
    """Ports of the Service; those of the pods are always the same."""
    ports = {"httpPort": spec.gateway.http_port, "grpcPort": spec.gateway.grpc_port}
    return {"service": {name: port for name, port in ports.items() if port}}


def _notes(values: Values, options: HelmOptions) -> list[str]:
    found = []
    if not options.artifacts:
        found.append("artifacts.url is empty: give --artifacts URL, or set it when you install")
    if names := variables_of([values.get("spec"), values.get("jobs"), values.get("streams")]):
        found.append(
            f"the spec names variables ({', '.join(names)}): put them into a Secret and set "
            "environmentSecret to its name"
        )
    if any("autoscaling" in stream for stream in values.get("streams", ())):
        found.append(
            "KEDA counts records where the spec's target_lag_s counts seconds: set lagThreshold to "
            "target_lag_s times what one worker does in a second"
        )
    return found
