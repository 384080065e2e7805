"""Settings of a stream's workers from its spec, as far as nothing needs pinning."""

import msgspec

from headrace.core import Nulls
from headrace.core.spec import StreamSpec
from headrace.core.spec_stream_topics import StreamFormatSpec, StreamSinkSpec
from headrace.core.spec_stream_windows import StreamWindowsSpec
from headrace.core.spec_streams import StreamErrorsSpec
from headrace.streaming.broker import Delivery, Start
from headrace.streaming.settings import (
    ErrorSettings,
    FormatKind,
    FormatSettings,
    OutputSettings,
    Policy,
    StreamSettings,
    Timestamps,
    TombstonePolicy,
)
from headrace.streaming.windows.settings import Function, WindowSettings, WindowsSettings


def stream_settings(stream: StreamSpec) -> StreamSettings:
    """The settings, without what answers and where features go."""
    source, sink = stream.source, stream.sink
    other = None if sink is None else sink.format
    return StreamSettings(
        name=stream.name,
        broker=source.broker,
        topics=list(source.topics),
        sink="" if sink is None else sink.topic,
        group=source.group or stream.name,
        member="",
        dead_letters=stream.dead_letter_topic,
        format=_format(stream.format),
        sink_format=None if other is None else _format(other),
        nulls=Nulls(stream.nulls),
        output=OutputSettings() if sink is None else _output(sink),
        errors=_errors(stream.errors),
        windows=None if stream.windows is None else _windows(stream.windows),
        delivery=Delivery(stream.delivery),
        start=Start(source.start),
        session_timeout_s=source.session_timeout_s,
        max_batch_size=stream.max_batch_size,
        max_delay_s=stream.max_delay_s,
        model_threads=stream.model_threads,
        drain_timeout_s=stream.drain_timeout_s,
        paused=stream.paused,
    )


def through_gateway(settings: StreamSettings, *, url: str, ca_file: str) -> StreamSettings:
    """`settings` with the gateway's address, for a stream that asks an endpoint."""
    if settings.endpoint is None:
        return settings
    endpoint = msgspec.structs.replace(settings.endpoint, url=url, ca_file=ca_file)
    return msgspec.structs.replace(settings, endpoint=endpoint)


def _format(spec: StreamFormatSpec) -> FormatSettings:
    return FormatSettings(
        kind=FormatKind(spec.kind),
        fields=dict(spec.fields),
        columns={name: list(columns) for name, columns in spec.columns.items()},
        options=dict(spec.options),
    )


def _output(sink: StreamSinkSpec) -> OutputSettings:
    return OutputSettings(
        key=sink.key,
        outputs=list(sink.outputs),
        fields=list(sink.fields),
        headers="all" if sink.headers == "all" else tuple(sink.headers),
        timestamps=Timestamps(sink.timestamps),
        tombstones=None if sink.tombstones is None else TombstonePolicy(sink.tombstones),
    )


def _errors(spec: StreamErrorsSpec) -> ErrorSettings:
    return ErrorSettings(
        policy=Policy(spec.policy),
        first_delay_s=spec.first_delay_s,
        max_delay_s=spec.max_delay_s,
        retry_for_s=spec.retry_for_s,
        max_age_s=spec.max_age_s,
    )


def _windows(spec: StreamWindowsSpec) -> WindowsSettings:
    return WindowsSettings(
        windows=[
            WindowSettings(
                name=window.name,
                size_s=window.size_s,
                slide_s=window.slide_s,
                function=Function(window.function),
                field=window.field,
                key=window.key,
            )
            for window in spec.windows
        ],
        time=spec.time,
        lateness_s=spec.lateness_s,
        ahead_s=spec.ahead_s,
        checkpoint_s=spec.checkpoint_s,
    )
