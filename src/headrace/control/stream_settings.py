"""Settings of a stream's workers from its spec, as far as nothing needs pinning."""

import msgspec

from headrace.core import Nulls
from headrace.core.spec import StreamSpec
from headrace.core.spec_stream_parts import StreamOutputSpec
from headrace.streaming.broker import Delivery, Start
from headrace.streaming.settings import StreamSettings


def stream_settings(stream: StreamSpec) -> StreamSettings:
    """The settings, without what answers and where features go."""
    source, sink = stream.source, stream.sink
    return StreamSettings(
        name=stream.name,
        broker=source.broker,
        topics=list(source.topics),
        sink="" if sink is None else sink.topic,
        group=source.group or stream.name,
        member="",
        dead_letters=stream.dead_letter_topic,
        format=stream.format,
        sink_format=None if sink is None else sink.format,
        nulls=Nulls(stream.nulls),
        output=StreamOutputSpec() if sink is None else sink.output,
        errors=stream.errors,
        windows=stream.windows,
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
