"""Settings of a control plane at its start, and secret references in them."""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.control.base.agents_settings import AgentsSettings
from headrace.control.base.ownership import HomeIdentity, ProcessOwner
from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.redact import VARIABLE, remember_resolved
from headrace.core.spec.access import TlsSpec
from headrace.core.state_file import StateFile
from headrace.core.variables import filled_in, url_filled_in

DEFAULT_METRICS_PORT: Final = 8002
DEFAULT_ADMIN_PORT: Final = 8080


class OidcSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Browser login at an OpenID provider."""

    issuer: str
    client_id: str
    redirect_url: str
    """The management API's `/auth/callback` as seen by browsers."""
    client_secret: str = ""
    """`${NAME}` of the environment or `file:/PATH`, never the secret itself; empty for a public
    client.
    """
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    user_claim: str = "sub"
    """Claim that identifies a person permanently; `email` counts only if it is verified."""
    groups_claim: str = "groups"
    roles: tuple[str, ...] = ()
    """Roles of members of groups, as `GROUP=ROLE` or `GROUP=ROLE:ENDPOINT`. Times are in seconds.
    """
    session_idle_s: float = 3600.0
    session_s: float = 12 * 3600.0


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Cluster in which the driver `kubernetes` runs replicas, and its identity there."""

    namespace: str
    instance: str = "headrace"
    """Name of this installation; names of objects begin with it."""
    identity: str = ""
    """Identity in the leader election among the installation's control planes."""
    internal_secret: str = ""
    """The Secret whose `token` authenticates the control plane to replicas."""
    image_registry: str = ""
    """Prefix of the names of images, such as `registry.example/ml`."""
    pull_secrets: tuple[str, ...] = ()
    """Secrets for pulling images."""
    store_secret: str = ""
    """Secret whose keys are the variables of the artifact store."""
    platform_uid: bool = False
    """Whether the platform sets the user of pods."""
    gateway_secret: str = ""
    """The Secret that gets a copy of the gateways' configuration; empty for none."""
    owners: tuple[str, ...] = ()
    """`KIND/NAME` of the owners of all created objects: a Deployment, ConfigMap or ServiceAccount.
    """
    url: str = ""
    """URL of a proxy to the API server."""
    context: str = ""
    """Context of a kubeconfig; if this and `url` are empty, the pod's service account, or the
    kubeconfig's current context.
    """
    lease_s: float = 15.0
    """Time without a renewal after which another control plane takes over leadership."""


class ControlSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one control plane, resolved from flags and environment, as JSON.

    Ports: 0 picks a free one (or keeps that of an adopted gateway); None reuses those of a killed
    control plane, else leaves `http_port`, `grpc_port` and `host` to the spec, and uses 8002 and
    8080 for metrics and management. `spec` is a document with absolute model paths; None continues
    with the stored state.
    """

    home: str
    spec: dict[str, Any] | None = None
    spec_file: str = ""
    """File that `spec` is from, on a cluster: its changes are applied. Empty for none."""
    endpoint: dict[str, Any] | None = None
    """An endpoint that is added to the stored state, or changes it; not together with `spec`."""
    host: str | None = None
    http_port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    admin_port: int | None = None
    admin_host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    """Host headers that the management API accepts besides loopback names and `admin_host`.
    `copy_logs` writes every process's log to standard error. If `first_request` is False, endpoints
    become ready without a test request.
    """
    log_format: str = "text"
    log_level: str = "INFO"
    copy_logs: bool = False
    drain_timeout_s: float = 30.0
    leaves_running: bool = False
    """Whether SIGTERM ends only the control plane, and leaves gateway, replicas and stream workers
    to the next one; SIGINT and the management API stop them.
    """
    first_request: bool = True
    tls: TlsSpec | None = None
    """Encryption of the gateway's ports; None leaves it to the spec."""
    admin_tls: TlsSpec | None = None
    """Encryption of the management API and metrics; None for plain text, which remote access allows
    only with `insecure_admin`.
    """
    insecure_admin: bool = False
    admin_token_file: str = ""
    """File with the admin token, read at the start; empty for one that the home's first start
    creates.
    """
    state_url: str = ""
    """The database of the desired state, where `${NAME}` is an environment variable and
    `file:/PATH` the content of a file; empty for a file in the home.
    """
    oidc: OidcSettings | None = None
    """None without an identity provider."""
    allow_code: bool = False
    """Whether every endpoint may have models of formats that run their authors' code."""
    model_roots: tuple[str, ...] = ()
    """Below these directories operators who are no admins may name models by path."""
    console: str = ""
    """The function, as `MODULE:NAME`, that builds the web console; empty for none.
    """
    prometheus_url: str = ""
    """Prometheus server for data older than a day, with references as in `state_url`; empty for
    none."""
    prometheus_matchers: str = ""
    """PromQL matchers of this system's series there; empty for all series."""
    artifacts: str = ""
    """URL of the artifact store that several homes share; empty for the home's own."""
    gateway: str = "local"
    """`local`, `remote` or `none`, as `GatewayMode` says."""
    agents: AgentsSettings | None = None
    """Listener for gateways on other hosts; None for no listener."""
    driver: str = "local"
    """`local` or `kubernetes`, which `cluster` configures."""
    cluster: ClusterSettings | None = None
    notify_fd: int | None = None
    """File descriptor to which `{"ready": true}` or `{"error": ...}` is written once."""


class ControlFile(msgspec.Struct, frozen=True, kw_only=True):
    """Addresses of a home's running control plane: the content of `run/control.json`.

    `started` is in seconds since 1970; `start_ticks` distinguishes its process from a later one
    with the same pid.
    """

    pid: int
    started: float
    admin_url: str
    http_url: str
    grpc_target: str
    metrics_url: str
    start_ticks: int = 0
    gateway_ca: str = ""
    """File of the certificate that callers on this machine trust, regardless of its names; empty
    for plain text.
    """
    admin_ca: str = ""
    """See `gateway_ca`."""
    token_file: str = ""
    """Path of the home owner's token."""
    home: HomeIdentity | None = None
    """The home of the control plane; None for release 0.1."""
    host: str = ""
    """Listen address of the gateway on this machine, as are the ports; empty and 0 for none."""
    http_port: int = 0
    grpc_port: int = 0
    state_url: str = ""
    """`sqlite:///PATH`, or `postgresql://` without the rest, which may be secret; empty for a file
    in the home."""
    agents_url: str = ""
    """URL of the listener for gateway agents; empty for none."""
    tls: TlsSpec | None = None
    """Encryption of the gateway's ports from flags, as paths; None without."""
    admin_tls: TlsSpec | None = None
    """Encryption of the management API from flags, as paths; None without."""


def read_settings(path: Path) -> ControlSettings:
    """Return the settings in a file.

    Raises:
        InvalidArgumentError: The file cannot be read; the message gives the reason.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ControlSettings)
    except (OSError, *UNDECODABLE) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from error


def write_control_file(path: Path, content: ControlFile) -> None:
    """Write the addresses of this control plane."""
    _control_file(path).save(content)


def read_control_file(home: Path) -> ControlFile | None:
    """Return the addresses of the home's running control plane; None if none runs."""
    content = _decode_control_file(home)
    return content if content is not None and ProcessOwner.of(home).is_running(content) else None


def read_last_control_file(home: Path) -> ControlFile | None:
    """Return the addresses of the home's last control plane if it was killed or still runs.

    None after a regular stop, and for a copy of a home.
    """
    content = _decode_control_file(home)
    return content if content is not None and ProcessOwner.of(home).has_written(content) else None


def with_last_addresses(
    settings: ControlSettings, last: ControlFile | None, stored: Mapping[str, Any]
) -> ControlSettings:
    """Return `settings` with the addresses of `last` that no flag or changed spec overrides.

    Encryption is included: an encrypted port must not return in plain text.

    Args:
        last: File of a killed control plane; None for none.
        stored: The spec of that control plane.
    """
    admin, metrics = settings.admin_port, settings.metrics_port
    if admin is None:
        admin = (last and port_of(last.admin_url)) or DEFAULT_ADMIN_PORT
    if metrics is None:
        metrics = (last and port_of(last.metrics_url)) or DEFAULT_METRICS_PORT
    settings = msgspec.structs.replace(
        settings,
        admin_port=admin,
        metrics_port=metrics,
        tls=settings.tls or (last and last.tls),
        admin_tls=settings.admin_tls or (last and last.admin_tls),
    )
    if last is None or not last.host or settings.gateway != "local":
        return settings
    before = stored.get("gateway") or {}
    now = before if settings.spec is None else settings.spec.get("gateway") or {}
    unsaid = {
        name: getattr(last, name)
        for name in ("host", "http_port", "grpc_port")
        if getattr(settings, name) is None and now.get(name) == before.get(name)
    }
    return msgspec.structs.replace(settings, **unsaid)


def port_of(url: str) -> int:
    """Return the port of a URL; 0 for none."""
    digits = url.rpartition(":")[2].partition("/")[0]
    return int(digits) if digits.isdigit() else 0


def original_of(home: Path) -> str:
    """Return the path of the home that `home` is an unstarted copy of; empty if it is not."""
    content = _decode_control_file(home)
    if content is None or content.home is None or ProcessOwner.of(home).has_written(content):
        return ""
    return content.home.path


def _control_file(path: Path) -> StateFile[ControlFile]:
    return StateFile(path, ControlFile, "where the control plane is reached")


def _decode_control_file(home: Path) -> ControlFile | None:
    return _control_file(home / "run" / "control.json").load()


_FILE: Final = "file:"
_MAX_BYTES: Final = 1 << 20
_OURS: Final = frozenset({"HEADRACE_TOKEN", "HEADRACE_STATE_URL"})
_OF_ARTIFACTS: Final = "HEADRACE_ARTIFACTS_"
"""Prefix of the artifact store's variables; their values allow changes to every model."""


def is_reference(text: str) -> bool:
    """Whether `text` is only a reference, so that it can be shown to every caller."""
    return text.startswith(_FILE) or VARIABLE.fullmatch(text) is not None


def resolve_references(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return `text` with each reference replaced by its value.

    Args:
        environment: None for the environment of this process.

    Raises:
        FailedPreconditionError: A variable is not set, or a file cannot be read; the message names
            it, never its content.
    """
    if text.startswith(_FILE):
        return _read(Path(text.removeprefix(_FILE)))
    return filled_in(text, environment=environment)


def resolve_url(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Return a URL with references resolved; a variable may contain any characters.

    Raises:
        FailedPreconditionError: See `resolve_references`.
    """
    if is_reference(text):
        return resolve_references(text, environment)
    return url_filled_in(text, environment=environment)


def secret_reader(text: str, environment: Mapping[str, str] | None = None) -> Callable[[], str]:
    """Return a function that resolves `text`: it rereads files at each call, variables never.

    Raises:
        FailedPreconditionError: See `resolve_references`; the returned function raises it too.
    """
    now = resolve_references(text, environment)
    if text.startswith(_FILE):
        return lambda: resolve_references(text)
    return lambda: now


def forget_secrets(texts: Iterable[str], environment: MutableMapping[str, str]) -> None:
    """Remove the variables that references name, and Headrace's secrets, from an environment.

    Child processes inherit the rest: models must not get the database password.
    """
    named = {name for text in texts for name in VARIABLE.findall(text)}
    artifacts = {name for name in environment if name.startswith(_OF_ARTIFACTS)}
    for name in named | _OURS | artifacts:
        environment.pop(name, None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES)
        secret = data.decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FailedPreconditionError(f"cannot read the secret in {path}: {reason}") from error
    remember_resolved(secret, f"{_FILE}{path}")
    return secret


def absolute_reference(text: str) -> str:
    """Return the same reference for a process with another working directory."""
    if not text.startswith(_FILE):
        return text
    return f"{_FILE}{Path(text.removeprefix(_FILE)).absolute()}"
