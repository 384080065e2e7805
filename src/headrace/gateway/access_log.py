"""Envoy's request log, and its log of the arms that splits chose: their requests and fields.

Lines are buffered for up to a second. Envoy appends without limit: rotate by renaming the file and
reopening it (`EnvoyGateway.rotate_logs`). Lines are JSON, so callers' values stay inside their
quotes, and values that callers can make long are truncated.

An endpoint's own settings are in the metadata of its routes: they change without the listener,
whose connections would be closed.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final, assert_never

import msgspec

from headrace.core.files import size_of
from headrace.core.headers import SPLIT_HEADER, UNIT_HEADER, WEIGHTS_HEADER
from headrace.core.spec.observe import EndpointLogSpec, LogMode, RequestLogSpec
from headrace.gateway.resources import (
    ANSWERED_BY,
    IS_GRPC,
    RUNTIME_KEY,
    Json,
    Resource,
    either,
    every,
    expression,
    header_matches,
    seconds,
    status_is,
    typed,
)
from headrace.gateway.scripts import USAGE_METADATA

_TO_FILE: Final = "envoy.extensions.access_loggers.file.v3.FileAccessLog"
METADATA: Final = "headrace"
"""Metadata key under which routes store their endpoint's log settings."""
_FIRST_ERROR: Final = 400
_PER_MILLION: Final = 1_000_000
_SAID: Final = f"xds.route_metadata.filter_metadata['{METADATA}']"
# Some requests have no route, and most routes have no log settings.
_SAYS: Final = f"has(xds.route_metadata) && '{METADATA}' in xds.route_metadata.filter_metadata"
_MODE: Final = f"({_SAYS} && 'log' in {_SAID} ? {_SAID}['log'] : '')"
_HAS_SLOW: Final = f"{_SAYS} && 'slow' in {_SAID}"
_IS_SLOW: Final = f"{_HAS_SLOW} && request.duration >= duration({_SAID}['slow'])"

_FIELDS: Final = {
    "time": "%START_TIME(%Y-%m-%dT%H:%M:%S.%3fZ)%",
    "request_id": "%REQ(X-REQUEST-ID):256%",
    "trace_id": "%TRACE_ID%",
    "traceparent": "%REQ(TRACEPARENT):64%",
    "remote": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "caller": "%REQ(X-HEADRACE-CALLER):256%",
    "credential": "%REQ(X-HEADRACE-CREDENTIAL):256%",
    "method": "%REQ(:METHOD):32%",
    "path": "%PATH(NQ):1024%",
    "endpoint": "%ROUTE_NAME%",
    "cluster": ANSWERED_BY,
    "replica": "%UPSTREAM_HOST%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
    "code": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS(SNAKE_STRING)%",
    "flags": "%RESPONSE_FLAGS%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "duration_ms": "%DURATION%",
    "usage": f"%DYNAMIC_METADATA({USAGE_METADATA})%",
    # Times until the request was received, until the replica began to respond, until the response
    # was sent.
    "receive_us": "%COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)%",
    "replica_us": "%COMMON_DURATION(US_TX_BEG:US_RX_BEG:us)%",
    "send_us": "%COMMON_DURATION(US_RX_BEG:DS_TX_END:us)%",
}


def access_log(path: Path, settings: RequestLogSpec) -> Resource:
    """Return a logger that appends to `path`, without query strings: they may contain secrets."""
    logger = typed(
        "headrace.access_log",
        _TO_FILE,
        {"path": str(path), "log_format": {"json_format": _FIELDS}},
    )
    return {**logger, "filter": either(*_filter_expression(settings))}


_ARMS_BYTES: Final = 4 << 20


class RoutedRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A request of a split: its id, its caller's key in plain text, and the split's choice."""

    answer_id: str
    unit: str | None
    split_id: str
    weights: str
    """`EndpointRoute.logged_weights`."""
    cluster: str | None


def arms_log(path: Path) -> Resource:
    """Return a logger that appends each request with `WEIGHTS_HEADER` to `path` when it ends."""
    fields: Resource = {
        "answer_id": "%REQ(X-REQUEST-ID):256%",
        "unit": f"%REQ({UNIT_HEADER}):256%",
        "split_id": f"%REQ({SPLIT_HEADER})%",
        "weights": f"%REQ({WEIGHTS_HEADER})%",
        # With a fallback, the cluster that the split chose, not the one that answered.
        "cluster": "%UPSTREAM_CLUSTER_RAW%",
    }
    config: Resource = {"path": str(path), "log_format": {"json_format": fields}}
    logger = typed("headrace.arms_log", _TO_FILE, config)
    return {**logger, "filter": header_matches(WEIGHTS_HEADER, present_match=True)}


def _previous_arms(path: Path) -> tuple[int, Path]:
    """Return number and name of the newest renamed log of arms; 0 and no file if there is none."""
    names = {int(file.suffix[1:]): file for file in path.parent.glob(f"{path.name}.*")}
    return max(names.items(), default=(0, path.with_name(f"{path.name}.0")))


def rotate_arms(path: Path) -> bool:
    """Remove all requests in the log of arms but those since the last call.

    Return whether Envoy must reopen the file. Files are numbered: inodes would be used again.
    """
    number, previous = _previous_arms(path)
    is_moved = bool(size_of(path) or size_of(previous))
    if is_moved:
        path.touch()
        path.rename(path.with_name(f"{path.name}.{number + 1}"))
        previous.unlink(missing_ok=True)
    return is_moved


def read_arms(path: Path, after: tuple[int, int]) -> tuple[list[RoutedRequest], tuple[int, int]]:
    """Return the next 4 MiB of requests in the log of arms, and the position behind them. Blocking.

    Args:
        path: The current file.
        after: Number of a file and offset. If it is gone, the oldest file is read from its start.
    """
    number, previous = _previous_arms(path)
    after = after if after[0] <= number + 1 else (0, 0)
    # Envoy writes to one file only: if the current one is not empty, the previous one is complete.
    files = [(number, previous), (number + 1, path)][: 2 if size_of(path) else 1]
    for file_number, name in files[max(after[0] - number, 0) :]:
        offset = after[1] if file_number == after[0] else 0
        data = b""
        with contextlib.suppress(FileNotFoundError), name.open("rb") as file:
            file.seek(offset)
            data = file.read(_ARMS_BYTES)
        if _previous_arms(path)[0] != number:
            break  # renamed meanwhile
        data = data[: data.rfind(b"\n") + 1]
        requests = []
        for line in data.splitlines():
            with contextlib.suppress(msgspec.DecodeError):  # a killed Envoy wrote a part of it
                requests.append(msgspec.json.decode(line, type=RoutedRequest))
        if data:
            return requests, (file_number, offset + len(data))
    return [], after


def log_metadata(log: EndpointLogSpec | None) -> Resource:
    """Return an endpoint's log settings for the filter of `access_log`; empty for none."""
    if log is None or log == EndpointLogSpec():
        return {}
    fields: dict[str, Json] = {}
    if log.mode is not None:
        fields["log"] = log.mode.value
    if log.slow_s is not None:
        fields["slow"] = seconds(log.slow_s)
    return {"filter_metadata": {METADATA: fields}}


def _filter_expression(settings: RequestLogSpec) -> Sequence[Resource]:
    """Return which requests are logged: by the endpoint's settings, else by the gateway's.

    An expression costs a microsecond, so an ordinary request evaluates at most one: conditions that
    Envoy compares itself come first.
    """
    notable = either(*_notable(settings.slow_s), _sampled(settings.sample_ratio))
    match settings.mode:
        case LogMode.SAMPLED:
            return [
                every(notable, expression(f"{_MODE} != 'off'")),
                expression(f"{_MODE} == 'all' || ({_MODE} != 'off' && {_IS_SLOW})"),
            ]
        case LogMode.ALL:
            wants = expression(f"!({_MODE} in ['off', 'sampled'])")
        case LogMode.OFF:
            wants = expression(f"{_MODE} == 'all'")
        case _:
            assert_never(settings.mode)
    samples = expression(f"{_MODE} == 'sampled'")
    return [wants, every(samples, either(notable, expression(_IS_SLOW)))]


def _notable(slow_s: float) -> Sequence[Resource]:
    """Return the filter of errors, abandoned calls and slow calls, with the endpoint's limit."""
    longest_ms: Resource = {"default_value": round(slow_s * 1000), "runtime_key": RUNTIME_KEY}
    return [
        status_is("GE", _FIRST_ERROR),
        status_is("EQ", 0),
        # For other requests Envoy reports a status that is not OK.
        every(IS_GRPC, {"grpc_status_filter": {"statuses": ["OK"], "exclude": True}}),
        every(
            {"duration_filter": {"comparison": {"op": "GE", "value": longest_ms}}},
            expression(f"!({_HAS_SLOW})"),
        ),
    ]


def _sampled(ratio: float) -> Resource:
    """Return a random sample's filter, independent of the request id, which callers choose."""
    return {
        "runtime_filter": {
            "runtime_key": RUNTIME_KEY,
            "percent_sampled": {
                "numerator": round(ratio * _PER_MILLION),
                "denominator": "MILLION",
            },
            "use_independent_randomness": True,
        }
    }
