"""Disagreements between fields of streams that are valid on their own, in the raw document."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, TypeGuard
from urllib.parse import parse_qsl

from headrace.core.spec.features import feature_disagreements
from headrace.core.spec.stream_parts import LONGEST_WINDOW_S, MIN_WINDOW_S
from headrace.core.spec.yaml import SpecMistake

MAX_PARTS: Final = 10_000
"""Largest number of parts of one window, which bounds the additions per value."""
_US: Final = 1_000_000
_WITHOUT_FIELDS: Final = ("raw", "open_inference", "openai")
_WITH_PARTITIONS: Final = ("log", "kafka")
_OTHERS: Final = ("nats", "redis", "rediss", "valkey", "valkeys", "pulsar", "pulsar+ssl")
_OF_A_MODEL: Final = ("features", "labels", "runtime", "allow_code")
_REMOVED: Final = ("canary", "shadow")
"""Settings of version 0.1, which stored specs still have."""


def without_removed(document: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return `document` without stream settings of earlier versions."""
    streams = document.get("streams")
    if not isinstance(streams, list | tuple):
        return document
    left = [
        {key: value for key, value in stream.items() if key not in _REMOVED}
        if isinstance(stream, Mapping)
        else stream
        for stream in streams
    ]
    return {**document, "streams": left}


def stream_disagreements(document: Mapping[Any, Any]) -> list[SpecMistake]:
    """Return all disagreements between fields of streams."""
    mistakes: list[SpecMistake] = []
    first_use: dict[str, int] = {}
    items = [item for item in _items(document.get("endpoints")) if isinstance(item, Mapping)]
    endpoints = [name for endpoint in items if isinstance(name := endpoint.get("name"), str)]
    for i, stream in enumerate(_items(document.get("streams"))):
        if not isinstance(stream, Mapping):
            continue
        path = f"streams[{i}]"
        mistakes += _of_one(stream, path, endpoints)
        endpoint = next((e for e in items if e.get("name") == stream.get("endpoint")), {})
        disagreements = _openai(stream, path, endpoint)
        mistakes += [SpecMistake(place=where, message=text) for where, text in disagreements]
        name = stream.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of streams[{first_use[name]}]"
            mistakes.append(SpecMistake(place=f"{path}.name", message=message))
    return mistakes + _shared_groups(_items(document.get("streams")))


_ORDERED: Final = ("failover", "key_shared")


def is_unordered(broker: str) -> bool:
    """Return whether several workers may answer records of one key out of order.

    They do where a broker distributes single records, regardless of their keys.
    """
    subscription = dict(parse_qsl(broker.partition("?")[2])).get("subscription")
    return broker.partition(":")[0].lower() in _OTHERS and subscription not in _ORDERED


def _shared_groups(streams: Sequence[Any]) -> list[SpecMistake]:
    """Return mistakes for streams that share one group on one topic and would split its records."""
    mistakes: list[SpecMistake] = []
    owners: dict[tuple[str, str, str], tuple[int, str]] = {}
    for i, stream in enumerate(streams):
        source = stream.get("source") if isinstance(stream, Mapping) else None
        if not isinstance(source, Mapping) or not isinstance(source.get("broker"), str):
            continue
        name = str(stream.get("name"))
        group = str(source.get("group") or name)
        reads = [
            (server, str(topic), group)
            for server in _servers(source["broker"])
            for topic in _items(source.get("topics"))
        ]
        owner = next((owners[read] for read in reads if read in owners), None)
        if owner is not None and owner[1] != name:
            number, other = owner
            topic = next(topic for server, topic, _ in reads if (server, topic, group) in owners)
            message = (
                f"{group!r} is also the group of streams[{number}], {other!r}: each record "
                f"of {topic!r} would be scored by either {other!r} or {name!r}; use another "
                "group"
            )
            mistakes.append(SpecMistake(place=f"streams[{i}].source.group", message=message))
        for read in reads:
            owners.setdefault(read, (i, name))
    return mistakes


def _servers(broker: str) -> list[str]:
    """Return the servers in a broker's URL, without credentials and options."""
    scheme, _, rest = broker.partition("?")[0].partition(":")
    authority, _, path = rest.removeprefix("//").partition("/")
    hosts = authority.rpartition("@")[2].split(",")
    return [f"{scheme}:{host}/{path.strip('/')}" for host in hosts]


def _of_one(stream: Mapping[Any, Any], path: str, endpoints: list[str]) -> list[SpecMistake]:
    mistakes = [
        *_what_scores(stream, path, endpoints),
        *_without_scorer_conflict(stream, path),
        *_removed(stream, path),
        *_group_protocol(stream, path),
        *_topics(stream, path),
        *_numbers(stream, path),
        *_windows(stream, path),
        *_push(stream, path),
    ]
    return [SpecMistake(place=p, message=m) for p, m in mistakes] + feature_disagreements(
        {"network": True, **stream}, path
    )


def _what_scores(
    stream: Mapping[Any, Any], path: str, endpoints: Sequence[str]
) -> Iterator[tuple[str, str]]:
    model, endpoint = stream.get("model"), stream.get("endpoint")
    if model is not None and endpoint is not None:
        yield f"{path}.endpoint", "'model' and 'endpoint' exclude each other; keep one"
    elif model is None and endpoint is None:
        if stream.get("push") is None:
            yield path, "needs 'model', or 'endpoint' for an endpoint of this file, or 'push' alone"
        elif stream.get("sink") is not None:
            yield (
                path,
                (
                    "needs 'model', or 'endpoint' for an endpoint of this file; without 'sink' "
                    "the stream only pushes"
                ),
            )
    elif stream.get("sink") is None:
        yield f"{path}.sink", "is missing"
    if isinstance(endpoint, str) and model is None and endpoint not in endpoints:
        names = f"there are: {', '.join(endpoints)}" if endpoints else "'endpoints' names none"
        yield f"{path}.endpoint", f"there is no endpoint {endpoint!r}; {names}"


def _without_scorer_conflict(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield model settings without a model, and endpoint settings without an endpoint."""
    has_endpoint = stream.get("endpoint") is not None
    for key in ("api_key_file", "openai"):
        if not has_endpoint and stream.get(key) is not None:
            yield f"{path}.{key}", "is only for a stream with 'endpoint'"
    if stream.get("model") is not None:
        return
    reason = (
        "cannot be combined with 'endpoint': the endpoint has its own"
        if has_endpoint
        else "is only for a stream with 'model'"
    )
    yield from ((f"{path}.{key}", reason) for key in _OF_A_MODEL if stream.get(key))


def _openai(
    stream: Mapping[Any, Any], path: str, endpoint: Mapping[Any, Any]
) -> Iterator[tuple[str, str]]:
    """Yield disagreements of `openai` with the rest of a stream and with the endpoint."""
    settings, upstream = stream.get("openai"), endpoint.get("upstream")
    protocol = upstream.get("protocol", "v2") if isinstance(upstream, Mapping) else None
    sink = stream.get("sink")
    parts = [stream.get("format"), sink.get("format") if isinstance(sink, Mapping) else None]
    read, written = (p.get("kind", "json") if isinstance(p, Mapping) else None for p in parts)
    if settings is None:
        if "openai" in (read, written):
            yield f"{path}.format", "'openai' is for a stream with the setting 'openai'"
        if protocol == "openai":
            message = f"{endpoint.get('name')!r} answers OpenAI's API, not tensors; set 'openai'"
            yield f"{path}.endpoint", message
        return
    if protocol not in (None, "openai"):
        yield f"{path}.openai", f"the upstream of its endpoint has protocol {protocol!r}"
    if (read == "openai") != ((written or read) == "openai"):
        yield f"{path}.format", "'openai' is for input and output: the answer to a body is a body"
    if stream.get("windows") is not None:
        yield f"{path}.windows", "add fields to records, but a request of 'openai' has one text"
    is_shared = isinstance(settings, Mapping) and settings.get("path") == "/v1/embeddings"
    if stream.get("max_batch_size") is not None and (not is_shared or read == "openai"):
        message = "is for texts to embed; here, a record is a request: set 'model_threads', the "
        yield f"{path}.max_batch_size", f"{message}number of requests in flight"


def _removed(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    reason = "is no longer a setting of streams; name an 'endpoint', whose rollout a stream follows"
    yield from ((f"{path}.{key}", reason) for key in _REMOVED if stream.get(key) is not None)


def _group_protocol(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    source = stream.get("source")
    if not isinstance(source, Mapping) or source.get("group_protocol", "auto") == "auto":
        return
    broker = source.get("broker")
    if isinstance(broker, str) and broker.partition(":")[0].lower() != "kafka":
        yield f"{path}.source.group_protocol", "is only for a broker of Kafka: kafka://HOST:PORT"


def _topics(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    source, sink = stream.get("source"), stream.get("sink")
    topics = _items(source.get("topics")) if isinstance(source, Mapping) else []
    written = sink.get("topic") if isinstance(sink, Mapping) else None
    dead_letters = stream.get("dead_letters")
    errors = stream.get("errors")
    policy = errors.get("policy") if isinstance(errors, Mapping) else None
    if dead_letters is not None and policy in ("skip", "stop"):
        yield (
            f"{path}.dead_letters",
            f"is not used with `policy: {policy}`, which writes no dead letters",
        )
    elif dead_letters is None and policy not in ("skip", "stop"):
        dead_letters = f"{stream.get('name')}-dead-letters"
    if written is not None and written in topics:
        message = (
            f"{written!r} is also a source topic: predictions would be scored again without end"
        )
        yield f"{path}.sink.topic", message
    if dead_letters is not None and dead_letters in topics:
        yield (
            f"{path}.dead_letters",
            f"{dead_letters!r} is also a source topic: its records would be read again without end",
        )
    if dead_letters is not None and dead_letters == written:
        yield (
            f"{path}.dead_letters",
            f"{dead_letters!r} is the topic of the sink; use another topic",
        )
    if isinstance(sink, Mapping) and sink.get("tombstones") == "forward" and sink.get("key"):
        message = "is 'forward', but a record without a value has no field for 'key'; use 'skip'"
        yield f"{path}.sink.tombstones", message


def _numbers(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    workers, errors = stream.get("workers"), stream.get("errors")
    if isinstance(workers, Mapping):
        low, high = workers.get("min", 1), workers.get("max")
        if _is_number(low) and _is_number(high) and low > high:
            yield f"{path}.workers.min", f"is {low}, more than 'max', which is {high}"
    if isinstance(errors, Mapping):
        first, last = errors.get("first_delay_s", 0.1), errors.get("max_delay_s", 10.0)
        if _is_number(first) and _is_number(last) and first > last:
            yield f"{path}.errors.max_delay_s", f"is {last}, less than the first delay"


def _is_number(value: Any) -> bool:  # noqa: ANN401  # whatever stands there
    return isinstance(value, int | float) and not isinstance(value, bool)


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []


def _windows(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield disagreements between `windows` and the rest of a stream, and between windows."""
    settings = stream.get("windows")
    if settings is None:
        return
    path = f"{path}.windows"
    kind = _kind_without_fields(stream)
    if kind is not None:
        yield path, f"add fields to records, but the format {kind!r} has none"
    source = stream.get("source")
    broker = source.get("broker") if isinstance(source, Mapping) else None
    if isinstance(broker, str) and broker.partition(":")[0].lower() in _OTHERS:
        schemes = " or ".join(f"{scheme}:" for scheme in _WITH_PARTITIONS)
        yield (
            path,
            "need a broker whose topics have partitions, each read by one worker: " + schemes,
        )
    windows = settings.get("windows") if isinstance(settings, Mapping) else None
    names: dict[str, int] = {}
    for index, window in enumerate(windows if isinstance(windows, list | tuple) else ()):
        if isinstance(window, Mapping):
            yield from _of_window(
                window, f"{path}.windows[{index}]", f"{path}.windows", names, index
            )


def _of_window(
    window: Mapping[Any, Any], path: str, windows: str, names: dict[str, int], index: int
) -> Iterator[tuple[str, str]]:
    name = window.get("name")
    if isinstance(name, str) and names.setdefault(name, index) != index:
        yield f"{path}.name", f"{name!r} is already the name of {windows}[{names[name]}]"
    function = window.get("function", "count")
    if isinstance(function, str) and function != "count" and not window.get("field"):
        yield f"{path}.field", f"{function!r} needs 'field', the field that it aggregates"
    size_s, slide_s = window.get("size_s"), window.get("slide_s")
    if not (_is_length(size_s) and _is_length(slide_s)):
        return  # reported separately, or tumbling
    if slide_s > size_s:
        yield f"{path}.slide_s", f"is {slide_s:g}, more than 'size_s', which is {size_s:g}"
    elif (parts := _parts(size_s, slide_s)) > MAX_PARTS:
        message = (
            f"splits windows of {size_s:g} s into {parts} parts, but at most {MAX_PARTS} are "
            "stored: use a larger value that divides 'size_s'"
        )
        yield f"{path}.slide_s", message


def _parts(size_s: float, slide_s: float) -> int:
    size = round(size_s * _US)
    return size // math.gcd(size, round(slide_s * _US))


def _is_length(value: Any) -> TypeGuard[float]:  # noqa: ANN401  # whatever stands there
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and MIN_WINDOW_S <= value <= LONGEST_WINDOW_S


def _push(stream: Mapping[Any, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield disagreements between `push` and the rest of a stream."""
    if stream.get("push") is None:
        return
    kind = _kind_without_fields(stream)
    if kind is not None:
        yield f"{path}.push", f"takes fields of records, but the format {kind!r} has none"


def _kind_without_fields(stream: Mapping[Any, Any]) -> str | None:
    """Return the kind of a stream's raw format, if its records have no named fields."""
    settings = stream.get("format")
    kind = settings.get("kind") if isinstance(settings, Mapping) else None
    return kind if isinstance(kind, str) and kind in _WITHOUT_FIELDS else None
