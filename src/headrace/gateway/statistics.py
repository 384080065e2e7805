"""Envoy's own counts: requests and latencies of each arm, and TLS handshakes of upstreams.

Access loggers keep one histogram per arm, HTTP status and gRPC status: for requests of a split
whose arms are compared, and separately for all others. Envoy's histograms are log-linear with two
significant digits (circllhist): a bucket is at most a tenth as wide as its lower bound.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import msgspec

from headrace.core.headers import CREDENTIAL_HEADER, SPLIT_HEADER
from headrace.gateway.clusters import arm_of, shadow_route
from headrace.gateway.resources import (
    ANSWERED_BY,
    Json,
    Resource,
    every,
    header_matches,
    stats_logger,
    status_is,
)
from headrace.gateway.scripts import FALLBACK_METADATA, USAGE_METADATA

_SPLIT: Final = "headrace_arm"
_REST: Final = "headrace_rest"
_MICRO_S: Final = 1e-6
_MILLI_S: Final = 1e-3
_NAME: Final = re.compile(
    rf"(?P<group>{_SPLIT}|{_REST})\.(?P<kind>us|ms|dead|token|length|failed)"
    r"\.arm\.(?:(?P<endpoint>[^~]+)~(?P<key>(?:\d+(?:~(?!(?:openai|fallback)\b)[a-z][a-z0-9]*)?)?)"
    r"(?:~openai|~fallback)?|[a-z_-]*)"
    r"\.route\.(?P<route>.*)\.code\.(?P<code>\d+)\.grpc\.(?P<grpc>\d*)"
)
_ASK: Final = "/stats?format=json&type=Histograms&histogram_buckets=detailed&filter="

MAX_COUNTED: Final = 1 << 53
"""Maximum count: larger numbers are not exact in all JSON parsers."""


@dataclass(frozen=True, slots=True)
class StatsQuery:
    """Query of Envoy's admin socket."""

    histograms: str
    total: str
    """Counters of everything in the histograms; these are never late, histograms are."""


OF_SPLITS: Final = StatsQuery(f"{_ASK}^{_SPLIT}[.]", rf"{_SPLIT}\.total")
OF_ALL: Final = StatsQuery(f"{_ASK}^({_SPLIT}|{_REST})[.]", rf"({_SPLIT}|{_REST})\.total")
Bucket: TypeAlias = tuple[float, float]
"""Lower bound and width."""
_SERVER_ERROR: Final = 500
_CALLER_ERROR: Final = 400
_TOO_MANY: Final = 429
_CALLER_LEFT: Final = 499
_NO_ANSWER: Final = 503
# UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS
_GRPC_ERRORS: Final = frozenset({2, 4, 8, 12, 13, 14, 15})
_GRPC_NO_ANSWER: Final = frozenset({0, 1})  # OK; CANCELLED: the caller left
_GRPC_CANCELLED: Final = "1"


_NUMBERS: Final = ("requests", "errors", "rejections", "abandoned")
_HISTOGRAMS: Final = ("latency", "per_token", "output_tokens")


class ArmStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one arm by its split since Envoy started, by outcome, and their latencies.

    Also sums over all gateways.
    """

    requests: int = 0
    """All requests, including errors, rejections and abandoned ones."""
    errors: int = 0
    """HTTP 5xx and 429, gRPC's UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED,
    INTERNAL, UNAVAILABLE, DATA_LOSS; also errors that the gateway made because the arm did not
    answer.
    """
    rejections: int = 0
    """Other HTTP 4xx, gRPC's other codes."""
    abandoned: int = 0
    """Requests whose callers disconnected."""
    latency: Mapping[Bucket, int] = {}
    """Requests by lower edge and width of their bucket, in seconds, from the request's first byte
    to the answer's, or until the caller disconnected; of a stream of tokens, to the first token.
    Includes errors.
    """
    per_token: Mapping[Bucket, int] = {}
    """Streams of the split by lower edge and width of their bucket, in seconds: the mean time of an
    output token after the first."""
    output_tokens: Mapping[Bucket, int] = {}
    """Answers of the split by lower edge and width of their bucket: how many tokens were generated,
    as the server counted them."""

    def since(self, before: "ArmStatistics") -> "ArmStatistics":
        """Return the counts since `before`; all counts if they were reset meanwhile."""
        numbers = {name: getattr(self, name) - getattr(before, name) for name in _NUMBERS}
        histograms = {
            name: _more(getattr(self, name), getattr(before, name)) for name in _HISTOGRAMS
        }
        counts = [*numbers.values(), *(n for more in histograms.values() for n in more.values())]
        return self if min(counts) < 0 else msgspec.structs.replace(self, **numbers, **histograms)

    def plus(self, other: "ArmStatistics") -> "ArmStatistics":
        """Return the sum of both, limited to the largest number that can be stored."""
        requests = min(self.requests + other.requests, MAX_COUNTED)
        errors = min(self.errors + other.errors, requests)
        rejections = min(self.rejections + other.rejections, requests - errors)
        return ArmStatistics(
            requests=requests,
            errors=errors,
            rejections=rejections,
            abandoned=min(self.abandoned + other.abandoned, requests - errors - rejections),
            **{name: _sum(getattr(self, name), getattr(other, name)) for name in _HISTOGRAMS},
        )


def _more(now: Mapping[Bucket, int], before: Mapping[Bucket, int]) -> dict[Bucket, int]:
    """Return the counts that changed; below 0 where `before` has more."""
    counts = {bucket: now.get(bucket, 0) - before.get(bucket, 0) for bucket in {**before, **now}}
    return {bucket: count for bucket, count in counts.items() if count}


def _sum(one: Mapping[Bucket, int], other: Mapping[Bucket, int]) -> dict[Bucket, int]:
    counts = dict(one)
    for bucket, count in other.items():
        counts[bucket] = min(counts.get(bucket, 0) + count, MAX_COUNTED)
    return counts


class GatewayStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """Counts by endpoint and arm key."""

    epoch: str
    """Identifies one run of Envoy; counts restart with another epoch."""
    arms: Mapping[tuple[str, str], ArmStatistics]
    """Statistics by endpoint and arm key."""
    healthy: Mapping[tuple[str, str], bool] = {}
    """Whether an external upstream is healthy, by endpoint and arm key; of splits only."""


def arm_loggers(*, counts_all: bool) -> Sequence[Resource]:
    """Return the access loggers that count answered and abandoned requests.

    A request without a live server is refused before the split's header is set; an arm's verdict
    must know of it, so such requests are counted once more, as `dead`. For the same reason an arm
    whose failure another endpoint made up for has an error, `failed`.

    Args:
        counts_all: Whether requests outside of compared splits are counted too.
    """
    loggers = [
        _logger(_SPLIT, "us", [_HAS_SPLIT, status_is("GE", 1), _NO_TOKENS]),
        _logger(_SPLIT, "us", [_HAS_TOKENS, _HAS_SPLIT], value=_FIRST_TOKEN),
        _logger(_SPLIT, "ms", [status_is("EQ", 0), _HAS_SPLIT]),  # the rare condition first
        _logger(_SPLIT, "dead", [_NO_SERVER, _NO_SPLIT]),
        _logger(_SPLIT, "token", [_has(USAGE_METADATA, "per_token_us"), _HAS_SPLIT]),
        # The number of tokens of a stream that was cut says nothing about the version.
        _logger(_SPLIT, "length", [_has(USAGE_METADATA, "unknown", value="0"), _HAS_SPLIT]),
        _logger(_SPLIT, "failed", [_HAS_FAILED, _HAS_SPLIT]),
    ]
    if counts_all:
        loggers += [
            _logger(_REST, "us", [_NO_SPLIT, status_is("GE", 1), _NO_TOKENS]),
            _logger(_REST, "us", [_HAS_TOKENS, _NO_SPLIT], value=_FIRST_TOKEN),
            _logger(_REST, "ms", [status_is("EQ", 0), _NO_SPLIT]),
        ]
    return loggers


Arm: TypeAlias = tuple[str, str]
"""An endpoint and the key of one of its arms."""


def read_splits(
    answer: bytes, endpoints: Collection[str]
) -> tuple[Mapping[Arm, ArmStatistics], int]:
    """Return the response to `OF_SPLITS` by endpoint and arm key, only of these endpoints.

    Copies for a language model count as requests of their arm.
    Also return the requests of all endpoints in it, to compare with the totals.
    """

    def arm_of(match: re.Match[str]) -> Arm | None:
        endpoint = match["endpoint"]
        routes = (endpoint, shadow_route(endpoint))
        is_split = match["group"] == _SPLIT and match["route"] in routes
        return (endpoint, match["key"]) if is_split and endpoint in endpoints else None

    return _read(answer, arm_of)


def read_all(answer: bytes, endpoints: Collection[str]) -> tuple[Mapping[Arm, ArmStatistics], int]:
    """Return the response to `OF_ALL`: all requests of callers to these endpoints, by arm.

    Requests without an arm, because no arm was live, have an empty key.
    """

    def arm_of(match: re.Match[str]) -> Arm | None:
        if match["kind"] in {"dead", "failed"}:
            return None  # counted among the rest, or for the endpoint that answered
        endpoint = match["route"].partition("~")[0]
        if endpoint not in endpoints or match["route"] == shadow_route(endpoint):
            return None
        return (endpoint, match["key"] if match["endpoint"] == endpoint else "")

    return _read(answer, arm_of)


def _read(
    answer: bytes, arm_of: Callable[[re.Match[str]], Arm | None]
) -> tuple[Mapping[Arm, ArmStatistics], int]:
    arms: dict[Arm, ArmStatistics] = {}
    total = 0
    for histogram in _histograms(answer):
        total += sum(bin_.count for bin_ in histogram.totals)
        match = _NAME.fullmatch(histogram.name)
        arm = None if match is None else arm_of(match)
        if match is not None and arm is not None:
            more = _counted(histogram.totals, match)
            arms[arm] = arms[arm].plus(more) if arm in arms else more
    return arms, total


class _Bin(msgspec.Struct, frozen=True):
    lower_bound: float
    width: float
    count: int


class _Histogram(msgspec.Struct, frozen=True):
    name: str
    totals: list[_Bin]


class _Details(msgspec.Struct, frozen=True):
    details: list[_Histogram] = []


class _Entry(msgspec.Struct, frozen=True):
    histograms: _Details = _Details()


class _Answer(msgspec.Struct, frozen=True):
    stats: list[_Entry]


def _histograms(answer: bytes) -> Iterator[_Histogram]:
    for entry in msgspec.json.decode(answer, type=_Answer).stats:
        yield from entry.histograms.details


def _counted(bins: Sequence[_Bin], match: re.Match[str]) -> ArmStatistics:
    """Return what a histogram says of its arm, by the parts of its name."""
    match match["kind"]:
        case "token":
            return ArmStatistics(per_token=_buckets(bins, _MICRO_S))
        case "length":
            return ArmStatistics(output_tokens=_buckets(bins, 1.0))
        case kind:
            latency = _buckets(bins, _MILLI_S if kind == "ms" else _MICRO_S)
    count, code, grpc = sum(bin_.count for bin_ in bins), int(match["code"]), match["grpc"]
    failed, rejected = is_error(code, grpc), is_rejection(code, grpc)
    return ArmStatistics(
        requests=count,
        errors=count * failed,
        rejections=count * rejected,
        abandoned=count * (is_abandoned(code, grpc) and not failed and not rejected),
        latency=latency,
    )


def _buckets(bins: Sequence[_Bin], unit: float) -> dict[Bucket, int]:
    # Rounded, so that equal buckets of two histograms are equal.
    return {
        (round(bin_.lower_bound * unit, 9), round(bin_.width * unit, 9)): bin_.count
        for bin_ in bins
    }


def is_error(code: int, grpc: str) -> bool:
    """Whether the arm failed, by HTTP status and gRPC status (empty for HTTP)."""
    by_grpc = bool(grpc) and int(grpc) in _GRPC_ERRORS
    return by_grpc or code >= _SERVER_ERROR or code == _TOO_MANY


def is_rejection(code: int, grpc: str) -> bool:
    """Whether the arm rejected the caller's input; excludes errors."""
    if is_error(code, grpc):
        return False
    if grpc and int(grpc) not in _GRPC_NO_ANSWER:
        return True
    return _CALLER_ERROR <= code < _SERVER_ERROR and code != _CALLER_LEFT


def is_abandoned(code: int, grpc: str) -> bool:
    """Whether the caller disconnected; excludes errors and rejections."""
    return code in {0, _CALLER_LEFT} or grpc == _GRPC_CANCELLED


_VALUES: Final = {
    "us": ("Microseconds", "%COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:us)%"),
    "dead": ("Microseconds", "%COMMON_DURATION(DS_RX_BEG:DS_TX_BEG:us)%"),
    "ms": ("Milliseconds", "%DURATION%"),  # for requests without a response
    "token": ("Microseconds", f"%DYNAMIC_METADATA({USAGE_METADATA}:per_token_us)%"),
    "length": ("Unspecified", f"%DYNAMIC_METADATA({USAGE_METADATA}:output)%"),
    "failed": ("Microseconds", f"%DYNAMIC_METADATA({FALLBACK_METADATA}:us)%"),
}


_FIRST_TOKEN: Final = f"%DYNAMIC_METADATA({USAGE_METADATA}:first_token_us)%"


def _logger(
    prefix: str, name: str, filters: Sequence[Resource], *, value: str | None = None
) -> Resource:
    unit, usual = _VALUES[name]
    arm, code = ANSWERED_BY, "%RESPONSE_CODE%"
    if name == "failed":
        arm, code = f"%DYNAMIC_METADATA({FALLBACK_METADATA}:first)%", str(_NO_ANSWER)
    tags: Json = [
        {"name": "arm", "value_format": arm},
        {"name": "route", "value_format": "%ROUTE_NAME%"},
        {"name": "code", "value_format": code},
        {"name": "grpc", "value_format": "%GRPC_STATUS_NUMBER%"},
    ]
    histogram: Resource = {
        "stat": {"name": name, "tags": tags},
        "unit": unit,
        "value_format": value or usual,
    }
    counter: Resource = {"stat": {"name": "total"}, "value_fixed": 1}
    return stats_logger(
        f"{prefix}.{name}", prefix, every(*filters), histograms=[histogram], counters=[counter]
    )


_HAS_SPLIT: Final = header_matches(SPLIT_HEADER, present_match=True)
_NO_SPLIT: Final = header_matches(SPLIT_HEADER, present_match=True, invert_match=True)


def _has(metadata: str, field: str, *, value: str = "", inverted: bool = False) -> Resource:
    """Return the filter of requests whose metadata has a field (of this value), or has not."""
    # The filter ignores `invert` of a matcher; no value is a single letter.
    exact = "x" if inverted else value
    match: Resource = {"string_match": {"exact": exact}} if exact else {"present_match": True}
    matcher: Resource = {"filter": metadata, "path": [{"key": field}], "value": match}
    return {"metadata_filter": {"matcher": matcher, "match_if_key_not_found": inverted}}


_HAS_TOKENS: Final = _has(USAGE_METADATA, "first_token_us")
_NO_TOKENS: Final = _has(USAGE_METADATA, "first_token_us", inverted=True)
_HAS_FAILED: Final = _has(FALLBACK_METADATA, "first")
_NO_SERVER: Final[Resource] = {"response_flag_filter": {"flags": ["UH"]}}
_TOKENS: Final = "headrace_tokens"
TOKEN_AMOUNTS: Final = ("input", "cached", "output", "reasoning", "unknown")
"""Fields of `TokenUse` that are added up."""
_TOKEN_TIMES: Final = ("first_token_us", "per_token_us")
TOKEN_COUNTERS: Final = rf"{_TOKENS}\.({'|'.join(TOKEN_AMOUNTS)})\..*"
"""Regular expression of the counters of tokens."""
_TOKEN_COUNTER: Final = re.compile(
    rf"{_TOKENS}\.(?P<kind>{'|'.join(TOKEN_AMOUNTS)})"
    r"\.arm\.(?P<arm>[^~]+~[^.]+)\.credential\.(?P<credential>.*)"
)


class TokenUse(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of responses of OpenAI's API, as their servers counted them."""

    day: str = ""
    """Day in UTC (`2026-11-25`); empty for all days since the gateway's start."""
    endpoint: str = ""
    version: str = ""
    credential: str = ""
    """`key:NAME`, `jwt:PROVIDER` or `certificate:RULE`; empty for callers without one."""
    input: int = 0
    """Tokens of prompts, with cached ones."""
    cached: int = 0
    """Tokens of prompts that the server had in its cache."""
    output: int = 0
    """Generated tokens, with those of reasoning."""
    reasoning: int = 0
    unknown: int = 0
    """Responses with status 200 whose tokens are unknown: the server reported none, or the stream
    ended before."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Return day, endpoint, version and credential."""
        return self.day, self.endpoint, self.version, self.credential

    def plus(self, other: "TokenUse") -> "TokenUse":
        """Return the sums of both, with the key of this one."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in TOKEN_AMOUNTS}
        return msgspec.structs.replace(self, **sums)


def sum_tokens(uses: Iterable[TokenUse]) -> tuple[TokenUse, ...]:
    """Return the sums of those with the same key, in the order of keys."""
    sums: dict[tuple[str, str, str, str], TokenUse] = {}
    for use in uses:
        sums[use.key] = sums[use.key].plus(use) if use.key in sums else use
    return tuple(sums[key] for key in sorted(sums))


def token_loggers() -> Sequence[Resource]:
    """Return the access loggers that count the tokens of each arm and credential, and times.

    Credentials are names of keys, issuers and rules for certificates: there are as many as the spec
    names, while callers may be many.
    """
    arm: Json = {"name": "arm", "value_format": ANSWERED_BY}
    credential: Json = {"name": "credential", "value_format": f"%REQ({CREDENTIAL_HEADER})%"}
    counters: Json = [
        {
            "stat": {"name": kind, "tags": [arm, credential]},
            "value_format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{kind})%",
        }
        for kind in TOKEN_AMOUNTS
    ]
    stats: dict[str, dict[str, Json]] = {"unknown": {"counters": counters}}
    for name in _TOKEN_TIMES:
        time: Json = {
            "stat": {"name": name, "tags": [arm]},
            "unit": "Microseconds",
            "value_format": f"%DYNAMIC_METADATA({USAGE_METADATA}:{name})%",
        }
        stats[name] = {"histograms": [time]}
    return [
        stats_logger(f"{_TOKENS}.{field}", _TOKENS, _has(USAGE_METADATA, field), **counted)
        for field, counted in stats.items()
    ]


TOKEN_TIMES: Final = f"{_ASK}^{_TOKENS}[.]({'|'.join(_TOKEN_TIMES)})[.]"
"""Path of the query for the histograms of `read_token_times`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """Tokens of answers of OpenAI's API since Envoy's start, and times of streams."""

    epoch: str = ""
    """Identifies one run of Envoy; counts restart with another epoch."""
    counts: tuple[TokenUse, ...] = ()
    times: Mapping[str, Mapping[Arm, Mapping[Bucket, int]]] = field(default_factory=dict)
    """Streams by bucket in seconds, by endpoint and version, of `first_token_us` and
    `per_token_us`."""

    @property
    def streams(self) -> dict[Arm, ArmStatistics]:
        """Output tokens (as `requests`) and times to the first token, by endpoint and version."""
        first_tokens = self.times.get("first_token_us", {})
        output = Counter[Arm]()
        for use in self.counts:
            output[use.endpoint, use.version] += use.output
        return {
            arm: ArmStatistics(requests=tokens, latency=first_tokens.get(arm, {}))
            for arm, tokens in output.items()
        }


def read_token_times(answer: bytes) -> Mapping[str, Mapping[Arm, Mapping[Bucket, int]]]:
    """Return the response to `TOKEN_TIMES`; arms with a role are part of their version."""
    times: dict[str, dict[Arm, Counter[Bucket]]] = {name: {} for name in _TOKEN_TIMES}
    for histogram in _histograms(answer):
        _, name, _, cluster = histogram.name.split(".", 3)
        arm = arm_of(cluster)
        if arm is not None:
            version = (arm[0], arm[1].partition("~")[0])
            of_version = times[name].setdefault(version, Counter())
            of_version.update(_buckets(histogram.totals, _MICRO_S))
    return times


def read_tokens(counters: Mapping[str, str | int]) -> tuple[TokenUse, ...]:
    """Return Envoy's counters of tokens; arms with a role are part of their version."""
    uses = []
    for name, value in counters.items():
        match = _TOKEN_COUNTER.fullmatch(name)
        arm = None if match is None else arm_of(match["arm"])
        if match is not None and arm is not None:
            use = TokenUse(
                endpoint=arm[0],
                version=arm[1].partition("~")[0],
                credential="" if match["credential"] == "-" else match["credential"],
            )
            uses.append(msgspec.structs.replace(use, **{match["kind"]: int(value)}))
    return sum_tokens(uses)


_FIELDS: Final = {
    "ssl.handshake": "done",
    "ssl.fail_verify_san": "wrong_name",
    "ssl.fail_verify_error": "untrusted",
    "ssl.fail_verify_no_cert": "untrusted",
    "ssl.connection_error": "failed",
    "upstream_cx_connect_fail": "failed",
    "health_check.network_failure": "failed",
    "health_check.failure": "unhealthy",
    "membership_healthy": "healthy",
}
HANDSHAKES: Final = rf"cluster\.[^.]+~[^.]+\.({'|'.join(_FIELDS).replace('.', '[.]')})"
"""Regular expression of the requested counters and gauges of Envoy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handshakes:
    """TLS handshakes and health checks of the upstream of one arm, since Envoy has the arm."""

    done: int = 0
    """Successful handshakes."""
    wrong_name: int = 0
    """Failures because the certificate names another host."""
    untrusted: int = 0
    """Failures because no trusted CA signed the certificate."""
    failed: int = 0
    """Other failures, such as connections that the upstream closed or rejected."""
    unhealthy: int = 0
    """Failed health checks, with and without a connection."""
    healthy: int = 0
    """Upstream servers that pass health checks now; all, without health checks."""


def read_handshakes(match: Mapping[str, str | int]) -> dict[tuple[str, str], Handshakes]:
    """Return Envoy's counters and gauges, by endpoint and arm key."""
    counts: dict[Arm, Counter[str]] = {}
    for name, value in match.items():
        _, cluster, description = name.split(".", 2)
        arm = arm_of(cluster)
        if arm is not None:
            counts.setdefault(arm, Counter())[_FIELDS[description]] += int(value)
    return {arm: Handshakes(**fields) for arm, fields in counts.items()}
