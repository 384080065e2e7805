"""Resolution of the spec's streams: settings of workers, with every model pinned."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.model.desired import DesiredStream
from headrace.core import InvalidArgumentError, NullPolicy, ReplicaSettings
from headrace.core.settings import BatchingSpec
from headrace.core.spec.parse import EndpointSpec, StreamSpec, SystemSpec
from headrace.core.spec.stream_parts import FormatKind, OpenAIPath, StreamOutputSpec
from headrace.protocol.openai import MAX_TEXTS
from headrace.streaming.broker import Delivery, GroupProtocol, StartPosition
from headrace.streaming.settings import ScoringEndpoint, WorkerSettings, check_settings

_ANSWER_TIMEOUT_S: Final = 600.0
"""Timeout of a request of OpenAI's API; the endpoint has a shorter one."""
_REQUESTS_AT_ONCE: Final = 8
"""Requests of OpenAI's API in flight, without `model_threads`."""


def stream_settings(stream: StreamSpec) -> WorkerSettings:
    """Return the worker settings, without the model or endpoint and the feature view."""
    source, sink = stream.source, stream.sink
    return WorkerSettings(
        name=stream.name,
        broker=source.broker,
        topics=list(source.topics),
        sink="" if sink is None else sink.topic,
        group=source.group or stream.name,
        member="",
        dead_letters=stream.dead_letter_topic,
        format=stream.format,
        sink_format=None if sink is None else sink.format,
        nulls=NullPolicy(stream.nulls),
        output=StreamOutputSpec() if sink is None else sink.output,
        errors=stream.errors,
        windows=stream.windows,
        delivery=Delivery(stream.delivery),
        start=StartPosition(source.start),
        session_timeout_s=source.session_timeout_s,
        group_protocol=GroupProtocol(source.group_protocol),
        max_batch_size=stream.max_batch_size,
        max_delay_s=stream.max_delay_s,
        model_threads=stream.model_threads,
        drain_timeout_s=stream.drain_timeout_s,
        paused=stream.paused,
    )


def through_gateway(settings: WorkerSettings, *, url: str, ca_file: str) -> WorkerSettings:
    """Return `settings` with the gateway's address, for a stream that calls an endpoint."""
    if settings.endpoint is None:
        return settings
    endpoint = msgspec.structs.replace(settings.endpoint, url=url, ca_file=ca_file)
    return msgspec.structs.replace(settings, endpoint=endpoint)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamModel:
    """A model for stream workers."""

    reference: str
    """`NAME:VERSION`."""
    settings: ReplicaSettings
    runs_code: bool = False


Pin = Callable[[EndpointSpec, str], StreamModel | None]
"""Pins the model of an endpoint, given its location in the spec; None after it reported a
mistake."""
Wrong = Callable[[str, str], None]
"""Reports a mistake: its location, and the message."""


def resolve_streams(
    spec: SystemSpec, pin: Pin, wrong: Wrong, home: Path
) -> tuple[DesiredStream, ...]:
    """Return the streams of a spec whose models and views can be pinned.

    Args:
        home: Home whose feature views they push into.
    """
    resolved = (
        _resolve(stream, f"streams[{i}]", pin, wrong, spec=spec, home=home)
        for i, stream in enumerate(spec.streams)
    )
    return tuple(stream for stream in resolved if stream is not None)


def _resolve(
    stream: StreamSpec, location: str, pin: Pin, wrong: Wrong, *, spec: SystemSpec, home: Path
) -> DesiredStream | None:
    model = push = None
    if stream.model is not None:
        model = pin(_as_endpoint(stream, stream.model), location)
    if stream.push is not None:
        from headrace.control.desired.feature_settings import (  # noqa: PLC0415  # few streams push
            PushMistakeError,
            push_settings,
        )

        try:
            push = push_settings(stream.push, home, url=spec.store_url(stream.push.online_store))
        except PushMistakeError as error:
            wrong(f"{location}.push.{error.field}", str(error))
    if (model is None and stream.model is not None) or (push is None and stream.push is not None):
        return None
    settings = msgspec.structs.replace(stream_settings(stream), features=push)
    name = "" if push is None else f"view {push.view}"
    if model is not None:
        name = model.reference
        settings = msgspec.structs.replace(settings, model=model.settings)
    elif stream.endpoint is not None:
        name = f"endpoint {stream.endpoint}"
        endpoint = ScoringEndpoint(
            url="", name=stream.endpoint, api_key_file=stream.api_key_file or ""
        )
        if stream.openai is not None:
            endpoint = msgspec.structs.replace(
                endpoint, openai=stream.openai, timeout_s=_ANSWER_TIMEOUT_S
            )
            is_shared = (
                stream.openai.path is OpenAIPath.EMBEDDINGS
                and stream.format.kind is not FormatKind.OPENAI
            )  # a retry of several completions would generate the finished ones again
            settings = msgspec.structs.replace(
                settings,
                max_batch_size=min(stream.max_batch_size, MAX_TEXTS) if is_shared else 1,
                model_threads=stream.model_threads or (None if is_shared else _REQUESTS_AT_ONCE),
            )
        settings = msgspec.structs.replace(settings, endpoint=endpoint)
    try:
        check_settings(settings)
    except InvalidArgumentError as error:
        wrong(location, str(error))  # only known after resolution
        return None
    bounds = stream.bounds
    return DesiredStream(
        name=stream.name,
        model=name,
        settings=settings,
        min_workers=bounds.min,
        max_workers=bounds.max,
        target_lag_s=bounds.target_lag_s,
        runs_code=model is not None and model.runs_code,
    )


def _as_endpoint(stream: StreamSpec, model: str) -> EndpointSpec:
    """Return an endpoint spec with the stream's model settings."""
    return EndpointSpec(
        name=stream.name,
        model=model,
        batching=BatchingSpec(
            max_batch_size=stream.max_batch_size, rows_independent=stream.rows_independent
        ),
        timeout_s=None,
        runtime=stream.runtime,
        labels=stream.labels,
        allow_code=stream.allow_code,
        features=stream.features,
        network=True,  # a worker connects to its broker
    )
