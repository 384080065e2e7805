"""Messages between a gateway's agent and the control plane, as JSON over mutual TLS.

The agent polls for a newer bundle, and reports the bundle in force, a refused bundle and counts. A
side with another protocol version gets an error and changes nothing.

A report is added to the counts of all gateways, displayed and stored: an impossible number or an
unbounded text would corrupt the data of all gateways.
"""

import hashlib
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from headrace.control.gateway.activator import HoldLimits
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.access import CorsSpec
from headrace.core.spec.observe import RequestLogSpec, TracingSpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import (
    MAX_COUNTED,
    ArmStatistics,
    EndpointRoute,
    GatewayPolicy,
    Handshakes,
    ListenerTls,
)
from headrace.gateway.statistics import TOKEN_AMOUNTS, TokenUse

_T = TypeVar("_T", bound=msgspec.Struct)

PROTOCOL: Final = 2
"""Increases with every change that an older side would misread."""
POLL_PATH: Final = "/agents/v1/poll"
REPORT_PATH: Final = "/agents/v1/report"
FORWARD_PATH: Final = "/agents/v1/forward"
"""Prefix of paths that callers request at the gateway and that only the control plane can serve."""
MAX_BUNDLE_BYTES: Final = 256 << 20
MAX_REPORT_BYTES: Final = 64 << 20
LONGEST_WAIT_S: Final = 30.0
"""Longest wait of a poll when there is nothing new."""
_MAX_NAME: Final = 512
_MAX_TEXT: Final = 2000
_MAX_VERSION: Final = 100
_MAX_CONCURRENT: Final = 1 << 31


class GatewayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options that all gateways of one control plane share, as in `EnvoySettings`."""

    max_body_bytes: int
    connections: ConnectionsSpec
    access_log: bool
    request_log: RequestLogSpec
    tracing: TracingSpec | None
    tls: ListenerTls | None
    cors: CorsSpec | None = None
    limits_port: int | None = None
    """Port of the control plane's service for shared rate limits, by mutual TLS."""
    limits_address: str | None = None
    """Address of another service that counts the limits; None without."""


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate with its key or authorities without a key, all PEM; or only an API key."""

    name: str
    certificates: str
    key: str = ""

    def __repr__(self) -> str:
        """Return a text without the key, because it may be logged."""
        return f"Secret(name={self.name!r})"

    __str__ = __repr__


class SharedDirectory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the control plane's host; the inode shows whether a gateway has access."""

    path: str
    device: int
    inode: int


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one gateway needs to serve, even without a control plane."""

    version: str
    """Hash of the other fields."""
    options: GatewayOptions
    routes: tuple[EndpointRoute, ...]
    policy: GatewayPolicy
    secrets: tuple[Secret, ...] = ()
    holds: dict[str, HoldLimits] = {}
    """How requests wait for the first replica, by endpoint scaled to zero."""
    sockets: SharedDirectory | None = None
    """Directory of the sockets of replicas that have no address."""


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """Poll of an agent. `held`, `refused`: versions. `asked`: the last answered count request."""

    protocol: int
    agent: str
    held: str = ""
    refused: str = ""
    request_number: int = msgspec.field(name="asked", default=0)
    wait_s: float = LONGEST_WAIT_S


class AgentInstructions(msgspec.Struct, frozen=True, kw_only=True):
    """Response of the control plane to a poll of an agent."""

    protocol: int
    control: str
    ask: int = 0
    """The last count request; the agent replies with newer counts."""
    bundle: Bundle | None = None
    """None if there is nothing new."""


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counters of one arm since the start of Envoy, as in `ArmStatistics`."""

    endpoint: str
    key: str
    requests: int = 0
    errors: int = 0
    rejections: int = 0
    abandoned: int = 0
    lower_s: tuple[float, ...] = ()
    width_s: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()
    per_token: tuple[tuple[float, float, int], ...] = ()
    """Lower edge, width and count of each bucket, as those of `output_tokens`."""
    output_tokens: tuple[tuple[float, float, int], ...] = ()

    @classmethod
    def of(cls, arm: tuple[str, str], totals: ArmStatistics) -> "Arm":
        """Return these totals as a message."""
        buckets = sorted(totals.latency.items())
        return cls(
            endpoint=arm[0],
            key=arm[1],
            requests=totals.requests,
            errors=totals.errors,
            rejections=totals.rejections,
            abandoned=totals.abandoned,
            lower_s=tuple(lower for (lower, _), _ in buckets),
            width_s=tuple(width for (_, width), _ in buckets),
            counts=tuple(count for _, count in buckets),
            per_token=tuple((*bucket, n) for bucket, n in sorted(totals.per_token.items())),
            output_tokens=tuple((*bucket, n) for bucket, n in sorted(totals.output_tokens.items())),
        )

    @property
    def totals(self) -> ArmStatistics:
        """Return the totals of this message.

        Raises:
            InvalidArgumentError: The totals are inconsistent.
        """
        of_tokens = (*self.per_token, *self.output_tokens)
        numbers = (
            *(self.requests, self.errors, self.rejections, self.abandoned, *self.counts),
            *(count for _, _, count in of_tokens),
        )
        lengths = {len(self.lower_s), len(self.width_s), len(self.counts)}
        ended = self.errors + self.rejections + self.abandoned
        is_odd = min(numbers) < 0 or ended > self.requests
        edges = [*self.lower_s, *self.width_s, *(edge for *pair, _ in of_tokens for edge in pair)]
        if is_odd or len(lengths) > 1 or min(edges, default=0.0) < 0:
            name = self.endpoint[:100]
            raise InvalidArgumentError(f"counts of '{name}' contradict themselves")
        if max(numbers) > MAX_COUNTED:
            raise InvalidArgumentError(f"the counters of '{self.endpoint[:100]}' are out of range")
        buckets = zip(self.lower_s, self.width_s, strict=True)
        return ArmStatistics(
            requests=self.requests,
            errors=self.errors,
            rejections=self.rejections,
            abandoned=self.abandoned,
            latency=dict(zip(buckets, self.counts, strict=True)),
            per_token={(lower, width): count for lower, width, count in self.per_token},
            output_tokens={(lower, width): count for lower, width, count in self.output_tokens},
        )


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """Requests in progress of one arm."""

    endpoint: str
    key: str
    requests: int


class UpstreamState(msgspec.Struct, frozen=True, kw_only=True):
    """Connection statistics of one upstream."""

    endpoint: str
    key: str
    handshakes: Handshakes = Handshakes()
    healthy: bool | None = None
    """None without a health check."""


class EnvoyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One reading of all of Envoy's counters."""

    epoch: str
    """Identifies the Envoy process, which counts from 0."""
    every: tuple[Arm, ...] = ()
    """Counts of all requests."""
    splits: tuple[Arm, ...] = ()
    """Counts of requests by a split whose arms are compared."""
    active: tuple[Active, ...] = ()
    upstreams: tuple[UpstreamState, ...] = ()
    tokens: tuple[TokenUse, ...] = ()
    """Tokens of OpenAI's API, without a day."""
    streams: tuple[Arm, ...] = ()
    """Output tokens of each version (as `requests`), and times to the first token."""


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status report of a gateway."""

    protocol: int
    agent: str
    name: str
    instance: str = ""
    """Id of this run of the agent, which reveals two agents with one name."""
    ask: int = 0
    """The count request that the report answers."""
    in_force: str = ""
    """The version that Envoy uses; empty for none."""
    refused: str = ""
    """A version that Envoy rejected; `reason` says why."""
    reason: str = ""
    ready: bool = False
    problem: str = ""
    """Why it does not serve, or is degraded."""
    restarts: int = 0
    url: str = ""
    held: dict[str, int] = {}
    """Number of requests that wait for an endpoint's first replica."""
    counts: EnvoyCounts | None = None
    """None if Envoy did not respond."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Reason why a message was rejected."""

    code: str
    message: str


class _ProtocolHead(msgspec.Struct):
    protocol: int = 0
    agent: str = ""
    control: str = ""


def with_version(bundle: Bundle) -> Bundle:
    """Return `bundle` with the version of its content, equal for equal content on all hosts."""
    unversioned = msgspec.structs.replace(bundle, version="")
    digest = hashlib.sha256(msgspec.json.encode(unversioned, order="sorted")).hexdigest()[:16]
    return msgspec.structs.replace(bundle, version=digest)


def encode_instructions(control: str, *, ask: int, bundle: bytes | None) -> bytes:
    """Return encoded `AgentInstructions` with an encoded bundle, equal for all gateways."""
    head = msgspec.json.encode(AgentInstructions(protocol=PROTOCOL, control=control, ask=ask))
    return head if bundle is None else b'%b,"bundle":%b}' % (_without_bundle(head), bundle)


def decode_instructions(data: bytes) -> AgentInstructions:
    """Return the instructions of the control plane.

    Raises:
        HeadraceError: The control plane uses another protocol version, or the data is invalid.
    """
    return _decode(data, AgentInstructions, who="the control plane")


def decode_poll(data: bytes) -> Poll:
    """Return an agent's poll; raises the errors of `decode_instructions`."""
    return _decode(data, Poll, who="the gateway's agent")


def decode_report(data: bytes) -> AgentStatus:
    """Return an agent's report; raises the errors of `decode_instructions`."""
    return _decode(data, AgentStatus, who="the gateway's agent")


def decode_bundle(data: bytes) -> Bundle:
    """Return a bundle that was stored on disk.

    Raises:
        InvalidArgumentError: The data is damaged.
    """
    return _strict(data, Bundle, who="the file")


def _decode(data: bytes, kind: type[_T], *, who: str) -> _T:
    spoken = _strict(data, _ProtocolHead, who=who)
    if spoken.protocol != PROTOCOL:
        version = spoken.agent or spoken.control or "of an unknown version"
        raise FailedPreconditionError(
            f"{who} ({version}) speaks protocol {spoken.protocol}, and this side {PROTOCOL}: "
            "install the same version of headrace on both"
        )
    return _strict(data, kind, who=who)


def _strict(data: bytes, kind: type[_T], *, who: str) -> _T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNDECODABLE as error:
        raise InvalidArgumentError(f"{who} sent an unreadable message: {error}") from error


def _without_bundle(head: bytes) -> bytes:
    end = b',"bundle":null}'
    assert head.endswith(end)
    return head[: -len(end)]


def checked_report(report: AgentStatus) -> AgentStatus:
    """Return `report` with its texts truncated for display.

    Raises:
        InvalidArgumentError: The report contains impossible values.
    """
    if len(report.name) > _MAX_NAME or not report.name.isprintable():
        raise InvalidArgumentError(
            f"a gateway's name has at most {_MAX_NAME} characters, all of them printable"
        )
    counts = report.counts
    if counts is not None:
        for active in counts.active:
            _check_number(f"requests in flight to '{active.endpoint[:100]}'", active.requests)
        for use in counts.tokens:
            texts = (use.endpoint, use.version, use.credential)
            amounts = [getattr(use, name) for name in TOKEN_AMOUNTS]
            is_odd = use.day or max(map(len, texts)) > _MAX_NAME
            if is_odd or not 0 <= min(amounts) <= max(amounts) <= MAX_COUNTED:
                raise InvalidArgumentError(f"the tokens of '{use.endpoint[:100]}' are impossible")
    for endpoint, held in report.held.items():
        _check_number(f"requests held for '{endpoint[:100]}'", held)
    return msgspec.structs.replace(
        report,
        agent=report.agent[:_MAX_VERSION],
        instance=report.instance[:_MAX_VERSION],
        in_force=report.in_force[:_MAX_VERSION],
        refused=report.refused[:_MAX_VERSION],
        reason=report.reason[:_MAX_TEXT],
        problem=report.problem[:_MAX_TEXT],
        url=report.url if _is_web(report.url) else "",
        restarts=max(report.restarts, 0),
    )


def _check_number(description: str, number: int) -> None:
    if not 0 <= number < _MAX_CONCURRENT:
        raise InvalidArgumentError(f"there cannot be {str(number)[:40]} {description}")


def _is_web(url: str) -> bool:
    """Whether the URL is an HTTP link that may be displayed."""
    try:
        return len(url) <= _MAX_TEXT and urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        return False
