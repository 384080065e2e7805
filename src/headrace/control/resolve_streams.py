"""What is each stream's worker told? What the spec says, with the model pinned as endpoints do."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from headrace.control.desired import DesiredStream
from headrace.core import ReplicaSettings
from headrace.core.spec import BatchingSpec, EndpointSpec, StreamSpec
from headrace.core.spec_streams import StreamErrorsSpec, StreamFormatSpec
from headrace.streaming.broker import Delivery, Start
from headrace.streaming.settings import (
    EndpointSettings,
    ErrorSettings,
    FormatKind,
    FormatSettings,
    OutputSettings,
    Policy,
    StreamSettings,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamModel:
    """A model as workers load it. `reference`: `NAME:VERSION`."""

    reference: str
    settings: ReplicaSettings
    runs_code: bool = False


Pin = Callable[[EndpointSpec, str], StreamModel | None]
"""Pins the model of an endpoint, told with its place in the spec; None if it noted a mistake."""


def resolve_streams(streams: Sequence[StreamSpec], pin: Pin) -> tuple[DesiredStream, ...]:
    """The streams whose models could be pinned."""
    found = (_resolve(stream, f"streams[{i}]", pin) for i, stream in enumerate(streams))
    return tuple(stream for stream in found if stream is not None)


def _resolve(stream: StreamSpec, place: str, pin: Pin) -> DesiredStream | None:
    if stream.model is None:
        assert stream.endpoint is not None, "the spec was checked"
        endpoint = EndpointSettings(
            url="", name=stream.endpoint, api_key_file=stream.api_key_file or ""
        )
        settings = _settings(stream, model=None, endpoint=endpoint)
        return _desired(stream, f"endpoint {stream.endpoint}", settings, runs_code=False)
    model = pin(_as_endpoint(stream, stream.model), place)
    if model is None:
        return None
    settings = _settings(stream, model=model.settings, endpoint=None)
    return _desired(stream, model.reference, settings, runs_code=model.runs_code)


def _as_endpoint(stream: StreamSpec, model: str) -> EndpointSpec:
    """What says the same of a model as the stream does."""
    return EndpointSpec(
        name=stream.name,
        model=model,
        batching=BatchingSpec(max_batch_size=stream.max_batch_size),
        timeout_s=None,
        runtime=stream.runtime,
        labels=stream.labels,
        allow_code=stream.allow_code,
        features=stream.features,
        network=True,  # a worker has to reach its broker
    )


def _desired(
    stream: StreamSpec, model: str, settings: StreamSettings, *, runs_code: bool
) -> DesiredStream:
    bounds = stream.bounds
    return DesiredStream(
        name=stream.name,
        model=model,
        settings=settings,
        min_workers=bounds.min,
        max_workers=bounds.max,
        target_lag_s=bounds.target_lag_s,
        runs_code=runs_code,
    )


def _settings(
    stream: StreamSpec, *, model: ReplicaSettings | None, endpoint: EndpointSettings | None
) -> StreamSettings:
    source, sink = stream.source, stream.sink
    return StreamSettings(
        name=stream.name,
        broker=source.broker,
        topics=list(source.topics),
        sink=sink.topic,
        group=source.group or stream.name,
        member="",
        dead_letters=stream.dead_letter_topic,
        model=model,
        endpoint=endpoint,
        format=_format(stream.format),
        sink_format=None if sink.format is None else _format(sink.format),
        output=OutputSettings(
            key=sink.key,
            outputs=list(sink.outputs),
            fields=list(sink.fields),
            headers=tuple(sink.headers),
        ),
        errors=_errors(stream.errors),
        delivery=Delivery(stream.delivery),
        start=Start(source.start),
        session_timeout_s=source.session_timeout_s,
        max_batch_size=stream.max_batch_size,
        max_delay_s=stream.max_delay_s,
        model_threads=stream.model_threads,
        drain_timeout_s=stream.drain_timeout_s,
        paused=stream.paused,
    )


def _format(spec: StreamFormatSpec) -> FormatSettings:
    return FormatSettings(
        kind=FormatKind(spec.kind),
        fields=dict(spec.fields),
        columns={name: list(columns) for name, columns in spec.columns.items()},
        options=dict(spec.options),
    )


def _errors(spec: StreamErrorsSpec) -> ErrorSettings:
    return ErrorSettings(
        policy=Policy(spec.policy),
        first_delay_s=spec.first_delay_s,
        max_delay_s=spec.max_delay_s,
        retry_for_s=spec.retry_for_s,
        max_age_s=spec.max_age_s,
    )
