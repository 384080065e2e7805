"""Messages between a gateway's agent and the control plane. JSON over mutual TLS.

The agent polls for what is newer than what it has, and reports what is in force, what was refused,
what was counted. A side that speaks another version of this is told so and changes nothing.

A report is added to what all gateways counted, shown to people and kept: a number that no gateway
can have, or a text without end, would spoil that for everybody.
"""

import hashlib
from typing import Final, TypeVar
from urllib.parse import urlsplit

import msgspec

from headrace.control.gateway.activator import HoldLimits
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.observe import RequestLogSpec, TracingSpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.gateway import (
    MOST_COUNTED,
    ArmStatistics,
    EndpointRoute,
    GatewayPolicy,
    Handshakes,
    ListenerTls,
)

_T = TypeVar("_T", bound=msgspec.Struct)

PROTOCOL: Final = 2
"""Goes up with every change that an older side would misread."""
POLL_PATH: Final = "/agents/v1/poll"
REPORT_PATH: Final = "/agents/v1/report"
FORWARD_PATH: Final = "/agents/v1/forward"
"""What follows it is a path that callers of the gateway asked for and that only the control plane
can answer."""
MAX_BUNDLE_BYTES: Final = 256 << 20
MAX_REPORT_BYTES: Final = 64 << 20
LONGEST_WAIT_S: Final = 30.0
"""How long the answer to a poll may take while there is nothing new."""
_MOST_NAME: Final = 512
_MOST_TEXT: Final = 2000
_MOST_VERSION: Final = 100
_MOST_AT_ONCE: Final = 1 << 31


class GatewayOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What all gateways of one control plane have in common, as in `EnvoySettings`."""

    max_body_bytes: int
    connections: ConnectionsSpec
    access_log: bool
    request_log: RequestLogSpec
    tracing: TracingSpec | None
    tls: ListenerTls | None
    limits_port: int | None = None
    """Where the control plane counts limits that gateways share, by mutual TLS."""
    limits_address: str | None = None
    """Who counts them if it does not. None if nobody does."""


class Secret(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A certificate with its key, or authorities if there is no key; all PEM."""

    name: str
    certificates: str
    key: str = ""

    def __repr__(self) -> str:
        """Without the key: this may come into a log."""
        return f"Secret(name={self.name!r})"

    __str__ = __repr__


class SharedDirectory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A directory of the control plane's host, by which a gateway knows whether it sees it too."""

    path: str
    device: int
    inode: int


class Bundle(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that one gateway needs to serve, for ever if need be."""

    version: str
    """A hash of the rest."""
    options: GatewayOptions
    routes: tuple[EndpointRoute, ...]
    policy: GatewayPolicy
    secrets: tuple[Secret, ...] = ()
    holds: dict[str, HoldLimits] = {}
    """How requests wait, by endpoints that nothing runs for."""
    sockets: SharedDirectory | None = None
    """Where replicas listen that have no address of their own."""


class Poll(msgspec.Struct, frozen=True, kw_only=True):
    """`held`, `refused`: versions. `asked`: the last question for counts that was answered."""

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
    """The last question; its answer are newer counts."""
    bundle: Bundle | None = None
    """None for nothing new."""


class Arm(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What Envoy has counted of one arm since it started, as in `ArmStatistics`."""

    endpoint: str
    key: str
    requests: int = 0
    errors: int = 0
    rejections: int = 0
    abandoned: int = 0
    lower_s: tuple[float, ...] = ()
    width_s: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, arm: tuple[str, str], totals: ArmStatistics) -> "Arm":
        """These totals as they travel."""
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
        )

    @property
    def totals(self) -> ArmStatistics:
        """These totals as they are computed with.

        Raises:
            InvalidArgumentError: They contradict themselves.
        """
        numbers = (self.requests, self.errors, self.rejections, self.abandoned, *self.counts)
        lengths = {len(self.lower_s), len(self.width_s), len(self.counts)}
        ended = self.errors + self.rejections + self.abandoned
        is_odd = min(numbers) < 0 or ended > self.requests
        if is_odd or len(lengths) > 1 or min((*self.lower_s, *self.width_s), default=0.0) < 0:
            name = self.endpoint[:100]
            raise InvalidArgumentError(f"counts of '{name}' contradict themselves")
        if max(numbers) > MOST_COUNTED:
            raise InvalidArgumentError(f"the counters of '{self.endpoint[:100]}' are out of range")
        edges = zip(self.lower_s, self.width_s, strict=True)
        return ArmStatistics(
            requests=self.requests,
            errors=self.errors,
            rejections=self.rejections,
            abandoned=self.abandoned,
            latency=dict(zip(edges, self.counts, strict=True)),
        )


class Active(msgspec.Struct, frozen=True, kw_only=True):
    """Requests of one arm that are under way."""

    endpoint: str
    key: str
    requests: int


class UpstreamState(msgspec.Struct, frozen=True, kw_only=True):
    """How connections to one upstream went."""

    endpoint: str
    key: str
    handshakes: Handshakes = Handshakes()
    healthy: bool | None = None
    """None where nobody asked."""


class EnvoyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One look at everything that Envoy counts."""

    epoch: str
    """Of its process, which counts from 0."""
    every: tuple[Arm, ...] = ()
    """Of all requests."""
    splits: tuple[Arm, ...] = ()
    """Of those that came by a split whose arms are compared."""
    active: tuple[Active, ...] = ()
    upstreams: tuple[UpstreamState, ...] = ()


class AgentStatus(msgspec.Struct, frozen=True, kw_only=True):
    """How a gateway is."""

    protocol: int
    agent: str
    name: str
    instance: str = ""
    """Which run of the agent this is, so that two of one name are found."""
    ask: int = 0
    """The question it answers."""
    in_force: str = ""
    """The version that Envoy acts on, empty for none."""
    refused: str = ""
    """One that it refused, and `reason` why."""
    reason: str = ""
    ready: bool = False
    problem: str = ""
    """Why it does not serve, or not as it should."""
    restarts: int = 0
    url: str = ""
    held: dict[str, int] = {}
    """How many requests wait for an endpoint's first replica."""
    counts: EnvoyCounts | None = None
    """None if Envoy did not say."""


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """Why a message was not taken."""

    code: str
    message: str


class _ProtocolHead(msgspec.Struct):
    protocol: int = 0
    agent: str = ""
    control: str = ""


def with_version(bundle: Bundle) -> Bundle:
    """`bundle` with the version that its content has: the same for the same content, everywhere."""
    bare = msgspec.structs.replace(bundle, version="")
    digest = hashlib.sha256(msgspec.json.encode(bare, order="sorted")).hexdigest()[:16]
    return msgspec.structs.replace(bundle, version=digest)


def encode_instructions(control: str, *, ask: int, bundle: bytes | None) -> bytes:
    """`AgentInstructions` around an encoded bundle, which is the same for all gateways."""
    head = msgspec.json.encode(AgentInstructions(protocol=PROTOCOL, control=control, ask=ask))
    return head if bundle is None else b'%b,"bundle":%b}' % (_without_bundle(head), bundle)


def decode_instructions(data: bytes) -> AgentInstructions:
    """What the control plane said.

    Raises:
        HeadraceError: It speaks another protocol, or this is nothing of ours.
    """
    return _decode(data, AgentInstructions, who="the control plane")


def decode_poll(data: bytes) -> Poll:
    """What an agent asks; errors as `decode_told`."""
    return _decode(data, Poll, who="the gateway's agent")


def decode_report(data: bytes) -> AgentStatus:
    """What an agent reports; errors as `decode_told`."""
    return _decode(data, AgentStatus, who="the gateway's agent")


def decode_bundle(data: bytes) -> Bundle:
    """A bundle as it lies on disk.

    Raises:
        InvalidArgumentError: It is damaged.
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
    """`report`, with its texts cut to what people read.

    Raises:
        InvalidArgumentError: It says what cannot be.
    """
    if len(report.name) > _MOST_NAME or not report.name.isprintable():
        raise InvalidArgumentError(
            f"a gateway's name has at most {_MOST_NAME} characters, all of them printable"
        )
    counts = report.counts
    if counts is not None:
        for active in counts.active:
            _check_number(f"requests in flight to '{active.endpoint[:100]}'", active.requests)
    for endpoint, held in report.held.items():
        _check_number(f"requests held for '{endpoint[:100]}'", held)
    return msgspec.structs.replace(
        report,
        agent=report.agent[:_MOST_VERSION],
        instance=report.instance[:_MOST_VERSION],
        in_force=report.in_force[:_MOST_VERSION],
        refused=report.refused[:_MOST_VERSION],
        reason=report.reason[:_MOST_TEXT],
        problem=report.problem[:_MOST_TEXT],
        url=report.url if _is_web(report.url) else "",
        restarts=max(report.restarts, 0),
    )


def _check_number(what: str, number: int) -> None:
    if not 0 <= number < _MOST_AT_ONCE:
        raise InvalidArgumentError(f"there cannot be {str(number)[:40]} {what}")


def _is_web(url: str) -> bool:
    """Whether people may be given it to follow."""
    try:
        return len(url) <= _MOST_TEXT and urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        return False
