"""Streams as Deployments with KEDA scaling, and jobs as CronJobs."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import msgspec

from headrace.control.jobs.plan import arguments_of, filled, new_run
from headrace.core import HeadraceError
from headrace.core.redact import VARIABLE
from headrace.core.spec.features import OnlineStoreSpec
from headrace.core.spec.jobs import PLACEHOLDER, JobScheduleSpec, JobSpec
from headrace.core.spec.parse import SystemSpec
from headrace.core.spec.streams import StreamSpec
from headrace.core.text import size_bytes
from headrace.deploy.features import Loss
from headrace.deploy.helm_spec import (
    ArtifactFile,
    HelmOptions,
    Mount,
    Values,
    model_path_loss,
    path_losses,
)
from headrace.streaming.brokers.kafka.url import kafka_options
from headrace.streaming.brokers.nats.messages import token_of

_BATCHES: Final = 10
_REDIS_PORT: Final = 6379
_TO_CONTROL: Final = "or let the control plane run streams (--streams control)"
_FIXED: Final = "set 'workers' to a number"


def stream_values(
    stream: StreamSpec,
    document: Mapping[str, Any],
    location: str,
    stored: Mapping[str, ArtifactFile],
    options: HelmOptions,
    *,
    stores: Iterable[OnlineStoreSpec] = (),
) -> tuple[Values, list[Loss]]:
    """Return the values of one Deployment, and its losses.

    Args:
        document: The stream in the spec.
        stored: Artifacts for pods, by the model references of the spec.
        stores: The online stores of the spec.
    """
    losses = [*_losses(stream, location), *path_losses(document, location, options.mounts)]
    stream_document, models = dict(document), list[Values]()
    model = stored.get(document.get("model", ""))
    if model is not None:  # fetched by an init container
        stream_document["model"] = f"/models/model/{model.filename}"
        models.append({"name": "model", "digest": model.digest})
    bounds = stream.bounds
    values: Values = {
        "name": stream.name,
        "replicas": bounds.min,
        "drainTimeoutSeconds": math.ceil(stream.drain_timeout_s),
        "models": models,
        "spec": stream_document,
    }
    named = {getattr(part, "online_store", None) for part in (stream.features, stream.push)}
    if used := [store.model_dump() for store in stores if store.name in named]:
        values["onlineStores"] = used
    if bounds.max > bounds.min:
        triggers = _triggers(stream, location, options, losses)
        values["autoscaling"] = {
            "minReplicas": bounds.min,
            "maxReplicas": bounds.max,
            "triggers": triggers,
        }
    # The Deployment sets their number; each pod has one.
    stream_document.pop("workers", None)
    return values, losses


def _losses(stream: StreamSpec, location: str) -> Iterator[Loss]:
    if stream.endpoint is not None:
        reason = "needs the gateway of a home, which no pod has"
        yield Loss(f"{location}.endpoint", reason, f"set the model itself (model:), {_TO_CONTROL}")
    if stream.model is not None:
        yield from model_path_loss(f"{location}.model", stream.model)
    if stream.windows is not None:
        reason = "keeps its state on the disk of one machine"
        yield Loss(f"{location}.windows", reason, _TO_CONTROL.removeprefix("or "))
    if stream.paused:
        reason = "is a command to a control plane"
        yield Loss(f"{location}.paused", reason, "scale the Deployment to 0 instead")


def _triggers(
    stream: StreamSpec, location: str, options: HelmOptions, losses: list[Loss]
) -> list[Values]:
    """Return the triggers of KEDA; what it cannot express is added to `losses`."""
    threshold = options.lag_records or _BATCHES * stream.max_batch_size
    group = stream.source.group or stream.name
    url = stream.source.broker
    scheme = url.partition(":")[0].lower()
    source = f"{location}.source.broker"
    if VARIABLE.search(urlsplit(url).netloc.rpartition("@")[2]):
        reason = "has a variable in its address, which KEDA cannot resolve"
        losses.append(Loss(source, reason, f"write the literal address, or {_FIXED}"))
        return []
    match scheme:
        case "kafka":
            triggers, needs = _kafka(stream, group, threshold, source, losses)
        case "redis" | "rediss" | "valkey":
            triggers, needs = _redis(stream, group, threshold)
        case "nats" if options.nats_monitoring:
            triggers, needs = _nats(stream, group, threshold, options.nats_monitoring), False
        case "nats":
            reason = "is NATS, which KEDA monitors at another address"
            losses.append(Loss(source, reason, f"set --nats-monitoring HOST:8222, or {_FIXED}"))
            return []
        case _:
            reason = f"is {scheme}:…, for which KEDA has no suitable scaler"
            losses.append(Loss(f"{location}.workers", reason, f"{_FIXED}, {_TO_CONTROL}"))
            return []
    if needs and not options.keda_authentication:
        reason = "requires authentication, and passwords are not exported to KEDA"
        way = f"create a TriggerAuthentication and set it (--keda-authentication), or {_FIXED}"
        losses.append(Loss(source, reason, way))
    if options.keda_authentication:
        reference = {"name": options.keda_authentication}
        return [{**trigger, "authenticationRef": reference} for trigger in triggers]
    return triggers


def _kafka(
    stream: StreamSpec, group: str, threshold: int, location: str, losses: list[Loss]
) -> tuple[list[Values], bool]:
    parts = urlsplit(stream.source.broker)
    try:
        address = kafka_options(f"kafka://{parts.netloc}").address
    except HeadraceError as error:
        losses.append(Loss(location, str(error), "correct it"))
        return [], False
    triggers = [
        {
            "type": "kafka",
            "metadata": {
                "bootstrapServers": address,
                "consumerGroup": group,
                "topic": topic,
                "lagThreshold": str(threshold),
                "offsetResetPolicy": stream.source.start,
            },
        }
        for topic in stream.source.topics
    ]
    options = dict(parse_qsl(parts.query))
    protocol = options.get("security.protocol", "plaintext").lower()
    return triggers, protocol != "plaintext" or "properties_file" in options


def _redis(stream: StreamSpec, group: str, threshold: int) -> tuple[list[Values], bool]:
    parts = urlsplit(stream.source.broker)
    metadata = {
        "address": f"{parts.hostname}:{parts.port or _REDIS_PORT}",
        "consumerGroup": group,
        "lagCount": str(threshold),
        "databaseIndex": parts.path.strip("/") or "0",
        "enableTLS": str(parts.scheme == "rediss").lower(),
    }
    triggers = [
        {"type": "redis-streams", "metadata": {**metadata, "stream": topic}}
        for topic in stream.source.topics
    ]
    return triggers, "@" in parts.netloc


def _nats(stream: StreamSpec, group: str, threshold: int, monitoring: str) -> list[Values]:
    """Return a NATS trigger with NATS terms: a topic is a stream, a group a durable consumer."""
    return [
        {
            "type": "nats-jetstream",
            "metadata": {
                "natsServerMonitoringEndpoint": monitoring,
                "account": "$G",
                "stream": topic.replace(".", "="),
                "consumer": token_of(group),
                "lagThreshold": str(threshold),
            },
        }
        for topic in stream.source.topics
    ]


_HOME: Final = Path("/var/lib/headrace")
_RUN_ID: Final = "$(RUN_ID)"
_NEVER: Final = "0 0 1 1 *"
_MIN_DEADLINE_S: Final = 60
_OVERLAPS: Final = {"skip": "Forbid", "allow": "Allow", "wait": "Forbid"}
_NAMES: Final = re.compile(
    r"JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC|SUN|MON|TUE|WED|THU|FRI|SAT"
)
_JOB_TO_CONTROL: Final = "or let the control plane run jobs (--jobs control)"
_MAX_KEPT: Final = 100


def job_values(
    job: JobSpec, location: str, stored: ArtifactFile | None, options: HelmOptions
) -> tuple[Values, list[Loss]]:
    """Return the values of one CronJob, and its losses.

    Args:
        stored: The artifact for its pods; None if unknown, which is reported elsewhere.
    """
    losses = [
        *_job_losses(job, location, options.mounts),
        *_schedule_losses(job.schedule, location),
    ]
    model = stored or ArtifactFile(digest="", filename="")
    schedule = job.schedule
    # A schedule that a CronJob cannot express, and whose loss is allowed, is run manually.
    runs = schedule is not None and _is_plain(schedule.cron)
    values: Values = {
        "name": job.name,
        "schedule": schedule.cron if schedule is not None and runs else _NEVER,
        "timeZone": "UTC" if schedule is None else schedule.timezone,
        "suspend": not runs,
        "concurrencyPolicy": _OVERLAPS["skip" if schedule is None else schedule.overlap],
        "retries": job.retries,
        "timeoutSeconds": math.ceil(job.timeout_s),
        "keepRuns": min(job.keep_runs, _MAX_KEPT),
        "model": {"digest": model.digest},
        "args": _arguments(job, f"/models/{model.filename}"),
    }
    if schedule is not None:
        late_s = 0.0 if schedule.catch_up == "none" else schedule.catch_up_within_s
        values["startingDeadlineSeconds"] = max(math.ceil(late_s), _MIN_DEADLINE_S)
    if job.memory_limit is not None:
        memory = str(size_bytes(job.memory_limit) or 0)
        cpu = str(job.workers or 1)
        values["resources"] = {
            "requests": {"cpu": cpu, "memory": memory},
            "limits": {"memory": memory},
        }
    return values, losses


def job_model_losses(spec: SystemSpec, job: JobSpec, location: str) -> Iterator[Loss]:
    """Yield losses of a job's model that its pods cannot fetch."""
    yield from model_path_loss(f"{location}.model", job.model)
    if any(job.model == endpoint.name for endpoint in spec.endpoints):
        reason = f"is the endpoint {job.model!r}, which a CronJob cannot resolve"
        yield Loss(f"{location}.model", reason, f"set the model as NAME:VERSION, {_JOB_TO_CONTROL}")


def _arguments(job: JobSpec, model: str) -> list[str]:
    """Return the command line of the control plane; Kubernetes fills in the run's name."""
    run = new_run(job.model_copy(update={"schedule": None}), 0.0, now=0.0)
    document: Mapping[str, object] = {
        **run.document,
        "model": model,
        "input": filled(job.input, run_id=_RUN_ID, date=""),
    }
    run = msgspec.structs.replace(
        run,
        id=_RUN_ID,
        document=dict(document),
        output=filled(job.output, run_id=_RUN_ID, date=""),
    )
    # `$(...)` in user input is not a Kubernetes variable.
    return [
        argument.replace("$(", "$$(").replace(f"${_RUN_ID}", _RUN_ID)
        for argument in arguments_of(run, _HOME)
    ]


def _job_losses(job: JobSpec, location: str, mounts: tuple[Mount, ...]) -> Iterator[Loss]:
    for name in ("input", "output"):
        text = getattr(job, name)
        if "date" in PLACEHOLDER.findall(text):
            reason = "has {date}, which a CronJob's pods do not know"
            yield Loss(f"{location}.{name}", reason, f"use {{run_id}}, {_JOB_TO_CONTROL}")
        may_use = (m for m in mounts if m.is_writable or name == "input")
        if text.startswith("/") and not any(mount.has(text) for mount in may_use):
            folder = text.partition("{")[0].rpartition("/")[0] or "/FOLDER"
            reason = f"is {text}, on this machine's disk"
            yield Loss(f"{location}.{name}", reason, f"mount a claim: --mount claim:NAME={folder}")


def _is_plain(cron: str) -> bool:
    """Whether a CronJob accepts it: without extensions, and with Sunday as 0."""
    signs = _NAMES.sub("", cron.upper())
    return not any(sign in signs for sign in "L#W") and "7" not in cron.rsplit(maxsplit=1)[-1]


def _schedule_losses(schedule: JobScheduleSpec | None, location: str) -> Iterator[Loss]:
    if schedule is None:
        return
    source = f"{location}.schedule"
    if schedule.overlap == "wait":
        yield Loss(
            f"{source}.overlap",
            "is wait, and a CronJob either skips (skip) or runs both (allow)",
            f"choose one of them, {_JOB_TO_CONTROL}",
        )
    if schedule.catch_up == "all":
        yield Loss(
            f"{source}.catch_up",
            "is all, and a CronJob catches up only the newest scheduled time",
            f"set last or none, {_JOB_TO_CONTROL}",
        )
    if schedule.late_after_s is not None:
        yield Loss(
            f"{source}.late_after_s",
            "is an alert of the control plane, which does not see CronJobs",
            f"alert on kube_cronjob_status_last_successful_time, {_JOB_TO_CONTROL}",
        )
    if not _is_plain(schedule.cron):
        yield Loss(
            f"{source}.cron",
            f"is {schedule.cron!r}, and a CronJob does not support L, # and W, and Sunday must "
            "be 0",
            f"write it without them, {_JOB_TO_CONTROL}",
        )
