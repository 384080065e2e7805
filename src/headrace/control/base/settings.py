"""Settings of a control plane at its start, and references to secrets in them."""

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
    """How people log in by a browser: at an OpenID provider."""

    issuer: str
    client_id: str
    redirect_url: str
    """The management API's `/auth/callback` as browsers reach it."""
    client_secret: str = ""
    """`${NAME}` of the environment or `file:/PATH`, never the secret itself; empty for a public
    client.
    """
    scopes: tuple[str, ...] = ("openid", "profile", "email")
    user_claim: str = "sub"
    """Names a person, for ever; `email` counts only if it is verified."""
    groups_claim: str = "groups"
    roles: tuple[str, ...] = ()
    """What members of groups are, as `GROUP=ROLE` or `GROUP=ROLE:ENDPOINT`. Times are in seconds.
    """
    session_idle_s: float = 3600.0
    session_s: float = 12 * 3600.0


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the driver `kubernetes` runs replicas, and as who."""

    namespace: str
    instance: str = "headrace"
    """The name of this installation there, which objects' names begin with."""
    identity: str = ""
    """Who stands for election among the control planes of an installation."""
    internal_secret: str = ""
    """The Secret whose `token` shows replicas that it is the control plane that asks."""
    owner: str = ""
    """`KIND/NAME` of the object whose end takes ours with it, a Deployment or a ConfigMap; empty
    for none.
    """
    url: str = ""
    """Of a proxy to the API server."""
    context: str = ""
    """Of a kubeconfig; both empty for the pod's own service account, or the kubeconfig's current
    context.
    """
    lease_s: float = 15.0
    """After how long without a word from the leader another control plane takes over."""


class ControlSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One control plane: flags and environment resolved, as JSON.

    Ports: 0 picks a free one (or keeps the one that an adopted gateway has); None goes on with
    those of a control plane that was killed, else leaves `http_port`, `grpc_port` and `host` to the
    spec, and takes 8002 and 8080 for metrics and management. `spec` is a document with absolute
    model paths; None goes on with the stored state.
    """

    home: str
    spec: dict[str, Any] | None = None
    host: str | None = None
    http_port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    admin_port: int | None = None
    admin_host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    """Host headers that the management API takes besides loopback names and `admin_host`.
    `copy_logs` writes every process's log to standard error. `first_request` False calls an
    endpoint ready without having asked it.
    """
    log_format: str = "text"
    log_level: str = "INFO"
    copy_logs: bool = False
    drain_timeout_s: float = 30.0
    first_request: bool = True
    tls: TlsSpec | None = None
    """Encryption of the gateway's ports; None leaves it to the spec."""
    admin_tls: TlsSpec | None = None
    """Of the management API and metrics; None for plain text, which beyond this machine needs
    `insecure_admin`.
    """
    insecure_admin: bool = False
    state_url: str = ""
    """The database of the desired state, where `${NAME}` stands for a variable of the environment
    and `file:/PATH` for a file's content; empty for a file in the home.
    """
    oidc: OidcSettings | None = None
    """None where nobody logs in at an identity provider."""
    allow_code: bool = False
    """Every endpoint may have models of formats that run their authors' code."""
    model_roots: tuple[str, ...] = ()
    """Below these directories operators who are no admins may name models by path."""
    console: str = ""
    """The function, as `MODULE:NAME`, that makes the pages beside the management API; empty for
    none.
    """
    prometheus_url: str = ""
    """Asked for what was longer ago than a day, with references as `state_url`; empty for none."""
    artifacts: str = ""
    """The URL of the store that models of several homes are in; empty for a home's own."""
    gateway: str = "local"
    """`local`, `remote` or `none`, as `GatewayMode` says."""
    agents: AgentsSettings | None = None
    """Where gateways on other hosts are listened for; None for nowhere."""
    driver: str = "local"
    """`local` or `kubernetes`, which `cluster` is about."""
    cluster: ClusterSettings | None = None
    notify_fd: int | None = None
    """Where `{"ready": true}` or `{"error": ...}` is written once."""


class ControlFile(msgspec.Struct, frozen=True, kw_only=True):
    """Where the running control plane of a home is reached: the content of `run/control.json`.

    `started` is in seconds since 1970; `start_ticks` tells its process from a later one of the same
    pid.
    """

    pid: int
    started: float
    admin_url: str
    http_url: str
    grpc_target: str
    metrics_url: str
    start_ticks: int = 0
    gateway_ca: str = ""
    """Files of the certificates that are shown there, for callers on this machine to trust,
    whatever names stand in them; empty for plain text.
    """
    admin_ca: str = ""
    """See `gateway_ca`."""
    token_file: str = ""
    """Where the token of the home's owner is."""
    home: HomeIdentity | None = None
    """The home that it serves; None for a control plane of release 0.1."""
    host: str = ""
    """What the gateway on this machine listens on, as do the ports; empty and 0 for none."""
    http_port: int = 0
    grpc_port: int = 0
    state_url: str = ""
    """`sqlite:///PATH`, or `postgresql://` without the rest, which may be secret; empty for a file
    of the home."""
    agents_url: str = ""
    """Where gateways' agents are listened for; empty for nowhere."""
    tls: TlsSpec | None = None
    """How flags had the gateway's ports encrypted, as paths; None if they did not."""
    admin_tls: TlsSpec | None = None
    """The same of the management API."""


def read_settings(path: Path) -> ControlSettings:
    """The settings in a file.

    Raises:
        InvalidArgumentError: It cannot be read; the message says why.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=ControlSettings)
    except (OSError, *UNDECODABLE) as error:
        raise InvalidArgumentError(f"cannot read {path}: {error}") from error


def write_control_file(path: Path, content: ControlFile) -> None:
    """Tell where this control plane is reached."""
    _control_file(path).save(content)


def read_control_file(home: Path) -> ControlFile | None:
    """Where the control plane of `home` is reached; None if none of this home runs."""
    content = _decode_control_file(home)
    return content if content is not None and ProcessOwner.of(home).is_running(content) else None


def read_last_control_file(home: Path) -> ControlFile | None:
    """Where the last control plane of `home` was reached, which was killed or still runs.

    None after one that was stopped, and for a copy of a home.
    """
    content = _decode_control_file(home)
    return content if content is not None and ProcessOwner.of(home).has_written(content) else None


def with_last_addresses(
    settings: ControlSettings, last: ControlFile | None, stored: Mapping[str, Any]
) -> ControlSettings:
    """`settings` with the addresses that `last` had, where neither a flag nor a changed spec says.

    Encryption belongs to them: a port that was encrypted must not come back in plain text.

    Args:
        last: What a control plane left that was killed; None for none.
        stored: The spec that it had.
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
    """The port that a URL names; 0 for none."""
    digits = url.rpartition(":")[2].partition("/")[0]
    return int(digits) if digits.isdigit() else 0


def original_of(home: Path) -> str:
    """The path of the home that `home` is a copy of; empty if it is none, or was started since."""
    content = _decode_control_file(home)
    if content is None or content.home is None or ProcessOwner.of(home).has_written(content):
        return ""
    return content.home.path


def _control_file(path: Path) -> StateFile[ControlFile]:
    return StateFile(path, ControlFile, "where the control plane is reached")


def _decode_control_file(home: Path) -> ControlFile | None:
    return _control_file(home / "run" / "control.json").load()


_FILE: Final = "file:"
_MOST_BYTES: Final = 1 << 20
_OURS: Final = frozenset({"HEADRACE_TOKEN", "HEADRACE_STATE_URL"})
_OF_ARTIFACTS: Final = "HEADRACE_ARTIFACTS_"
"""What begins so is for the store of models alone; who has it may change every model."""


def is_reference(text: str) -> bool:
    """Whether `text` is nothing but a reference, so that it can be told to everybody."""
    return text.startswith(_FILE) or VARIABLE.fullmatch(text) is not None


def resolve_references(text: str, environment: Mapping[str, str] | None = None) -> str:
    """What `text` means, with each reference replaced by what it stands for.

    Args:
        environment: None for this process's.

    Raises:
        FailedPreconditionError: A variable is not set, or a file cannot be read; the message names
            it, and never what is in it.
    """
    if text.startswith(_FILE):
        return _read(Path(text.removeprefix(_FILE)))
    return filled_in(text, environment=environment)


def resolve_url(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The same of a URL: a variable that is a part of one may have any characters.

    Raises:
        FailedPreconditionError: As above.
    """
    if is_reference(text):
        return resolve_references(text, environment)
    return url_filled_in(text, environment=environment)


def secret_reader(text: str, environment: Mapping[str, str] | None = None) -> Callable[[], str]:
    """Gives what `text` means, whenever it is asked: a file is read again, a variable never.

    Raises:
        FailedPreconditionError: As `resolve_references`; also whoever calls it may.
    """
    now = resolve_references(text, environment)
    if text.startswith(_FILE):
        return lambda: resolve_references(text)
    return lambda: now


def forget_secrets(texts: Iterable[str], environment: MutableMapping[str, str]) -> None:
    """Take the variables that references name out of an environment, and those of our own.

    Whatever is started later inherits the rest: models have no use for the state's password.
    """
    named = {name for text in texts for name in VARIABLE.findall(text)}
    artifacts = {name for name in environment if name.startswith(_OF_ARTIFACTS)}
    for name in named | _OURS | artifacts:
        environment.pop(name, None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        secret = data.decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise FailedPreconditionError(f"cannot read the secret in {path}: {reason}") from error
    remember_resolved(secret, f"{_FILE}{path}")
    return secret


def absolute_reference(text: str) -> str:
    """The same reference for a process that works in another directory."""
    if not text.startswith(_FILE):
        return text
    return f"{_FILE}{Path(text.removeprefix(_FILE)).absolute()}"
