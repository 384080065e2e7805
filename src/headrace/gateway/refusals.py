"""Whom did the gateway turn away, and why? Counted by route and by what refused."""

from collections.abc import Sequence
from typing import Final

from headrace.gateway.resources import Json, Resource, typed

PREFIX: Final = "headrace_refused"
_LOGGER: Final = "envoy.extensions.access_loggers.stats.v3.Config"
_RUNTIME_KEY: Final = "headrace.none"  # Envoy wants a name for an override that nobody sets


def refusal_loggers() -> Sequence[Resource]:
    """The access logger that counts refusals: over a limit, too large, or shed by a replica.

    `by` is one of few words of Envoy's: `local_rate_limited` here, `request_rate_limited` by the
    service, `via_upstream` by a replica.
    """
    tags: Json = [
        {"name": "route", "value_format": "%ROUTE_NAME%"},
        {"name": "by", "value_format": "%RESPONSE_CODE_DETAILS%"},
    ]
    counter: Resource = {"stat": {"name": "requests", "tags": tags}, "value_fixed": 1}
    logger = typed("headrace.refusals", _LOGGER, {"stat_prefix": PREFIX, "counters": [counter]})
    # A gRPC call is answered with 200, but the flag says it too.
    refused: Json = [
        {"response_flag_filter": {"flags": ["RL"]}},
        _code(429),
        _code(413),
    ]
    return [{**logger, "filter": {"or_filter": {"filters": refused}}}]


def _code(code: int) -> Resource:
    value: Resource = {"default_value": code, "runtime_key": _RUNTIME_KEY}
    return {"status_code_filter": {"comparison": {"op": "EQ", "value": value}}}
