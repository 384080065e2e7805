"""Control plane and gateway of a command.

A flag takes precedence over an environment variable, that over the current context, and that over
the local home. `--home`, or `HEADRACE_HOME`, without a server selects that home, whatever the
current context is.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import getpass
import os
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from headrace.cli.base.contexts import (
    DEFAULT_HOME,
    LOCAL,
    contexts_file,
    given_options,
    read_contexts,
    server_url,
)
from headrace.cli.base.management import Management
from headrace.control import ControlFile, read_control_file
from headrace.control.base.ownership import ProcessOwner
from headrace.control.base.settings import original_of, read_last_control_file
from headrace.core import HeadraceError, UnavailableError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTarget:
    """Target of a command."""

    home: Path
    url: str = ""
    """URL of the management API; empty for the system on `home`."""
    token: str = ""
    """Token for it; empty for that of the home's owner, or none."""
    ca_file: str = ""
    """CA of its certificate; empty for the system's CA certificates."""

    @property
    def is_remote(self) -> bool:
        """Whether a URL names it; local files must then be uploaded."""
        return bool(self.url)

    def is_running(self) -> bool:
        """Whether a control plane runs on the home."""
        return read_control_file(self.home) is not None

    def control_file(self) -> ControlFile:
        """Return the address of the home's control plane.

        Raises:
            UnavailableError: No control plane was started there.
        """
        control = read_control_file(self.home)
        if control is None:
            note = copy_note(original_of(self.home))
            msg = f"no system runs in {self.home}{note}; `headrace up` starts it"
            if self._gateway_runs():
                msg = (
                    f"no control plane runs in {self.home}, and its gateway and replicas serve on; "
                    "`headrace up` adopts them, `headrace down` stops them"
                )
            raise UnavailableError(msg, retry_after_s=None)
        return control

    def _gateway_runs(self) -> bool:
        """Whether the gateway of an ended control plane runs."""
        from headrace.control.base.home import Home  # only where no control plane runs
        from headrace.control.gateway.supervisor import read_gateway_record

        home = Home(root=self.home.absolute())
        return read_gateway_record(home.gateway_file, ProcessOwner.of(home.root)) is not None

    def management(self) -> Management:
        """Return the management API.

        Raises:
            UnavailableError: No system runs on the home.
        """
        if self.is_remote:
            return Management(self.url, token=self.token, ca_file=self.ca_file, is_remote=True)
        return local_management(self.control_file(), self.home, token=self.token)

    def endpoint_names(self) -> list[str]:
        """Return the endpoints of the control plane; empty if it does not respond."""
        try:
            status = self.management().get("/api/v1/status")
        except HeadraceError:
            return []
        return [endpoint["name"] for endpoint in status["endpoints"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """Address of a gateway."""

    url: str
    ca_file: str | None = None
    """Certificate of the gateway, if it is known."""
    server_name: str = ""
    """Name in that certificate by which it is verified, although the address differs."""


def copy_note(original: str) -> str:
    """Return the note for a home without a system that is a copy of the one at `original`."""
    return f" (a copy of {original}, which is not modified)" if original else ""


def gateway(target: CommandTarget) -> GatewayAddress:
    """Return the gateway of a target; a home's gateway runs without its control plane.

    A home's gateway runs without its control plane, so a stopped one's record counts.

    Raises:
        UnavailableError: No system was started there.
    """
    if target.is_remote:
        api = target.management()
        url = reachable_address(api.get("/api/v1/status")["addresses"]["http"], api.host)
        return GatewayAddress(url=url)
    control = read_last_control_file(target.home)
    if control is None:
        location = f"{target.home}{copy_note(original_of(target.home))}"
        msg = f"no system runs in {location}; `headrace up` starts it, --url names another server"
        raise UnavailableError(msg, retry_after_s=None)
    url, ca_file = control.http_url, control.gateway_ca
    if not ca_file:
        return GatewayAddress(url=url)
    from headrace.gateway.pem import read_certificates  # few gateways use TLS

    try:
        names = read_certificates(Path(ca_file).read_bytes())[0].names
    except (OSError, HeadraceError):
        names = ()
    hosts = [name for name in names if ":" not in name and "@" not in name]
    is_named = urlsplit(url).hostname in names or not hosts
    name = "" if is_named else hosts[0].replace("*", "gateway")
    return GatewayAddress(url=url, ca_file=ca_file, server_name=name)


def reachable_address(url: str, host: str) -> str:
    """Return `url` as reachable from here: a remote control plane's loopback is `host`."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or host in _LOOPBACK:
        return url
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{parts.port}").geturl()


def local_management(control: ControlFile, home: Path, *, token: str = "") -> Management:
    """Return the management API of the system on `home`, with its owner's token.

    Args:
        token: Explicit token that replaces the owner's.
    """
    from headrace.control.auth.home_token import read_home_token

    token = token or given_options().token or read_home_token(home)
    return Management(control.admin_url, token=token, pinned=control.admin_ca)


def find_target(server: str | None, home: Path) -> CommandTarget:
    """Return the target that the options `--server` and `--home` select.

    Raises:
        InvalidArgumentError: The server's URL is not valid.
        FailedPreconditionError: The file of contexts cannot be read.
    """
    credentials = given_options()
    if server == LOCAL or (not server and home is not DEFAULT_HOME):
        # An explicit home, by option or environment, is used, even if it is the same path.
        return CommandTarget(home=home, token=credentials.token)
    contexts = read_contexts(contexts_file())
    url = server_url(server) if server else contexts.server
    access = contexts.access_of(url)
    return CommandTarget(
        home=home,
        url=url,
        token=credentials.token or (access.token if url else ""),
        ca_file=credentials.ca_file or access.ca_file,
    )


def actor() -> str:
    """Return the user as `user@host`, as recorded in histories and events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def grpc_url(http_url: str, target: str) -> str:
    """Return the target of the second port, with a scheme if it is encrypted."""
    return f"grpcs://{target}" if http_url.startswith("https:") else target
