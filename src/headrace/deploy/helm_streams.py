"""How do the workers of a stream become a Deployment, and how does KEDA see their lag? Pure."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from headrace.core import HeadraceError
from headrace.core.redact import VARIABLE
from headrace.core.spec_features import OnlineStoreSpec
from headrace.core.spec_streams import StreamSpec
from headrace.deploy.helm_export import HelmOptions, Stored, Values
from headrace.deploy.helm_spec import model_path_loss, path_losses
from headrace.deploy.losses import Loss
from headrace.streaming.brokers.kafka_url import kafka_options
from headrace.streaming.brokers.nats_messages import token_of

_BATCHES: Final = 10
_REDIS_PORT: Final = 6379
_TO_CONTROL: Final = "or leave streams to the control plane (--streams control)"
_FIXED: Final = "give 'workers' as a number"


def stream_values(
    stream: StreamSpec,
    document: Mapping[str, Any],
    place: str,
    stored: Mapping[str, Stored],
    options: HelmOptions,
    *,
    stores: Iterable[OnlineStoreSpec] = (),
) -> tuple[Values, list[Loss]]:
    """The values of one Deployment, and what it cannot express.

    Args:
        document: The stream as it stands in the spec.
        stored: What its pods fetch, by the spec's own names of models.
        stores: The online stores of the spec.
    """
    losses = [*_losses(stream, place), *path_losses(document, place, options.mounts)]
    told, models = _with_fetched(document, stored)
    bounds = stream.bounds
    values: Values = {
        "name": stream.name,
        "replicas": bounds.min,
        "drainTimeoutSeconds": math.ceil(stream.drain_timeout_s),
        "models": models,
        "spec": told,
    }
    named = {getattr(part, "online_store", None) for part in (stream.features, stream.push)}
    if used := [store.model_dump() for store in stores if store.name in named]:
        values["onlineStores"] = used
    if bounds.max > bounds.min:
        triggers = _triggers(stream, place, options, losses)
        values["autoscaling"] = {
            "minReplicas": bounds.min,
            "maxReplicas": bounds.max,
            "triggers": triggers,
        }
    # Their number is the Deployment's business; each pod has one.
    told.pop("workers", None)
    return values, losses


def _losses(stream: StreamSpec, place: str) -> Iterator[Loss]:
    if stream.endpoint is not None:
        why = "asks a gateway through a home that runs it, which no pod has"
        yield Loss(f"{place}.endpoint", why, f"name the model itself (model:), {_TO_CONTROL}")
    if stream.model is not None:
        yield from model_path_loss(f"{place}.model", stream.model)
    if stream.windows is not None:
        why = "keeps its state on the disk of one machine"
        yield Loss(f"{place}.windows", why, _TO_CONTROL.removeprefix("or "))
    if stream.paused:
        why = "is what somebody says to a control plane"
        yield Loss(f"{place}.paused", why, "scale the Deployment to 0 instead")


def _with_fetched(
    document: Mapping[str, Any], stored: Mapping[str, Stored]
) -> tuple[Values, list[Values]]:
    """The stream with its model where an init container puts it, and what that fetches."""
    model = stored.get(document.get("model", ""))
    if model is None:
        return dict(document), []
    path = f"/models/model/{model.filename}"
    return {**document, "model": path}, [{"name": "model", "digest": model.digest}]


def _triggers(
    stream: StreamSpec, place: str, options: HelmOptions, losses: list[Loss]
) -> list[Values]:
    """What KEDA asks a broker; what it cannot goes to `losses`."""
    threshold = options.lag_records or _BATCHES * stream.max_batch_size
    group = stream.source.group or stream.name
    url = stream.source.broker
    scheme = url.partition(":")[0].lower()
    where = f"{place}.source.broker"
    if VARIABLE.search(urlsplit(url).netloc.rpartition("@")[2]):
        why = "has a variable in its address, and KEDA reads no environment of ours"
        losses.append(Loss(where, why, f"write the address itself, or {_FIXED}"))
        return []
    match scheme:
        case "kafka":
            found, needs = _kafka(stream, group, threshold, where, losses)
        case "redis" | "rediss" | "valkey":
            found, needs = _redis(stream, group, threshold)
        case "nats" if options.nats_monitoring:
            found, needs = _nats(stream, group, threshold, options.nats_monitoring), False
        case "nats":
            why = "is NATS, whose statistics KEDA reads at another address"
            losses.append(Loss(where, why, f"give --nats-monitoring HOST:8222, or {_FIXED}"))
            return []
        case _:
            why = f"is {scheme}:…, for which KEDA has no scaler that its URL is enough for"
            losses.append(Loss(f"{place}.workers", why, f"{_FIXED}, {_TO_CONTROL}"))
            return []
    if needs and not options.keda_authentication:
        why = "asks who connects, and KEDA is not told passwords here"
        way = f"make a TriggerAuthentication and name it (--keda-authentication), or {_FIXED}"
        losses.append(Loss(where, why, way))
    if options.keda_authentication:
        reference = {"name": options.keda_authentication}
        return [{**trigger, "authenticationRef": reference} for trigger in found]
    return found


def _kafka(
    stream: StreamSpec, group: str, threshold: int, where: str, losses: list[Loss]
) -> tuple[list[Values], bool]:
    parts = urlsplit(stream.source.broker)
    try:
        address = kafka_options(f"kafka://{parts.netloc}").address
    except HeadraceError as error:
        losses.append(Loss(where, str(error), "mend it"))
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
    """As the broker names things: a topic that is made is a stream, a group a durable consumer."""
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
