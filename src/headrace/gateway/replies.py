"""How errors that Envoy makes itself reach the caller: JSON over HTTP, a status over gRPC.

The first mapper whose filter matches shapes the reply; HTTP callers get `{"error": "..."}` as from
a replica, gRPC callers the text in `grpc-message`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from headrace.gateway.resources import Resource, typed

_BODY: Final = "%LOCAL_REPLY_BODY%"
_RETRY_AFTER_S: Final = 1
_FIRST_ERROR: Final = 400
_CEL: Final = "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter"
_TOO_MANY: Final = "too many requests: a limit per second is reached"
_POSTED: Final = "(/infer|:[a-z]+|/index|/load|/unload)([?].*)?$"
"""Paths of V1, V2 and the repository that take POST."""
_RUNTIME_KEY: Final = "headrace.none"  # Envoy wants a name for an override that nobody sets


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One kind of reply: its filter, its text, and what replaces Envoy's own codes."""

    when: Resource
    text: str = _BODY
    grpc_text: str = _BODY
    status: int | None = None
    grpc_status: int | None = None
    retry_after: bool = False
    allow: str = ""


def local_reply_config() -> Resource:
    """The mappers of every reply that no replica made."""
    return {"mappers": [mapper for case in _CASES for mapper in _mappers(case)]}


def _mappers(case: _Case) -> Iterator[Resource]:
    """One mapper for gRPC callers, one for all others."""
    # Unless whoever refused knows better.
    retry = (
        [_header("retry-after", str(_RETRY_AFTER_S), "ADD_IF_ABSENT")] if case.retry_after else []
    )
    grpc = [] if case.grpc_status is None else [_header("grpc-status", str(case.grpc_status))]
    status: Resource = {} if case.status is None else {"status_code": case.status}
    yield {
        "filter": {"and_filter": {"filters": [_IS_GRPC, case.when]}},
        "body_format_override": {"text_format_source": {"inline_string": case.grpc_text}},
        "headers_to_add": [*retry, *grpc],
        **status,
    }
    yield {
        "filter": case.when,
        "body_format_override": {"json_format": {"error": case.text}},
        "headers_to_add": [*retry, *([_header("allow", case.allow)] if case.allow else [])],
        **status,
    }


def _header(key: str, value: str, action: str = "OVERWRITE_IF_EXISTS_OR_ADD") -> Resource:
    return {"header": {"key": key, "value": value}, "append_action": action}


def _details_are(details: str, also: str = "true") -> Resource:
    """Which filter answered: at this point Envoy has set no flag yet."""
    config: Resource = {"expression": f"response.code_details == '{details}' && {also}"}
    return {"extension_filter": typed("headrace.details", _CEL, config)}


def _status(op: str, status: int) -> Resource:
    value: Resource = {"default_value": status, "runtime_key": _RUNTIME_KEY}
    return {"status_code_filter": {"comparison": {"op": op, "value": value}}}


_IS_GRPC: Final[Resource] = {
    "header_filter": {
        "header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    }
}
_CASES: Final = (
    # When a bucket has a token again is told by a filter, which sees the answer after this.
    _Case(when=_details_are("local_rate_limited"), text=_TOO_MANY, grpc_text=_TOO_MANY),
    # A circuit breaker is an overload, not an outage.
    _Case(
        when={"response_flag_filter": {"flags": ["UO"]}},
        status=429,
        grpc_status=8,
        retry_after=True,
    ),
    # Envoy answers this itself; other methods that nothing takes reach a replica, which says so.
    *(
        _Case(
            when=_details_are("query_missing_content_type", where),
            text="Method Not Allowed",
            status=405,
            allow=allow,
        )
        for where, allow in ((f"request.path.matches('{_POSTED}')", "POST"), ("true", "GET, HEAD"))
    ),
    # A script of ours says why.
    _Case(when={"and_filter": {"filters": [_status("EQ", 400), _details_are("lua_response")]}}),
    # Envoy refuses a malformed head without a text, but knows why.
    _Case(when=_status("EQ", 400), text="Bad Request: %RESPONSE_CODE_DETAILS%"),
    _Case(when=_status("EQ", 408), text="the request did not arrive in time", grpc_status=4),
    _Case(when=_status("EQ", 413), grpc_status=8),
    _Case(when=_status("EQ", 429), grpc_status=8, retry_after=True),
    _Case(when=_status("EQ", 503), retry_after=True),
    _Case(when=_status("EQ", 504), grpc_status=4),
    _Case(when=_status("GE", _FIRST_ERROR)),
)
