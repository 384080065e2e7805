"""Control plane and gateway that a command talks to.

A flag wins over an environment variable, that over the current context, and that over the home on
this machine. `--home`, or `HEADRACE_HOME`, given without a server means that home, whatever the
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
from headrace.control.base.settings import original_of, read_last_control_file
from headrace.core import HeadraceError, UnavailableError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandTarget:
    """Where a command goes."""

    home: Path
    url: str = ""
    """Of the management API; empty for what runs on `home`."""
    token: str = ""
    """Shown to it; empty for that of the home's owner, or none."""
    ca_file: str = ""
    """Who signs its certificate; empty for one of the usual authorities."""

    @property
    def is_remote(self) -> bool:
        """Whether it was named by a URL; files of this machine then have to be sent to it."""
        return bool(self.url)

    def is_running(self) -> bool:
        """Whether a control plane runs on the home."""
        return read_control_file(self.home) is not None

    def control_file(self) -> ControlFile:
        """Where the control plane on the home is reached.

        Raises:
            UnavailableError: None was started there.
        """
        control = read_control_file(self.home)
        if control is None:
            note = copy_note(original_of(self.home))
            msg = f"no system runs in {self.home}{note}; `headrace up` starts it"
            raise UnavailableError(msg, retry_after_s=None)
        return control

    def management(self) -> Management:
        """Its management API.

        Raises:
            UnavailableError: Nothing runs on the home.
        """
        if self.is_remote:
            return Management(self.url, token=self.token, ca_file=self.ca_file, is_remote=True)
        return local_management(self.control_file(), self.home, token=self.token)

    def endpoint_names(self) -> list[str]:
        """The endpoints that the control plane knows; none if it does not answer."""
        try:
            status = self.management().get("/api/v1/status")
        except HeadraceError:
            return []
        return [endpoint["name"] for endpoint in status["endpoints"]]


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayAddress:
    """Where a gateway is reached."""

    url: str
    ca_file: str | None = None
    """The certificate that it shows there, if that is known."""
    server_name: str = ""
    """A name in that certificate, for which it is trusted although it is reached by another."""


def copy_note(original: str) -> str:
    """What to add where no system runs in a home that is a copy of the one at `original`."""
    return f" (a copy of {original}, which is not modified)" if original else ""


def gateway(target: CommandTarget) -> GatewayAddress:
    """The gateway of a target.

    That of a home goes on without its control plane, so a dead one's word counts.

    Raises:
        UnavailableError: None was started there.
    """
    if target.is_remote:
        api = target.management()
        url = reachable_address(api.get("/api/v1/status")["addresses"]["http"], api.host)
        return GatewayAddress(url=url)
    control = read_last_control_file(target.home)
    if control is None:
        where = f"{target.home}{copy_note(original_of(target.home))}"
        msg = f"no system runs in {where}; `headrace up` starts it, --url names another server"
        raise UnavailableError(msg, retry_after_s=None)
    url, ca_file = control.http_url, control.gateway_ca
    if not ca_file:
        return GatewayAddress(url=url)
    from headrace.gateway.pem import read_certificates  # few gateways encrypt

    try:
        names = read_certificates(Path(ca_file).read_bytes())[0].names
    except (OSError, HeadraceError):
        names = ()
    hosts = [name for name in names if ":" not in name and "@" not in name]
    is_named = urlsplit(url).hostname in names or not hosts
    name = "" if is_named else hosts[0].replace("*", "gateway")
    return GatewayAddress(url=url, ca_file=ca_file, server_name=name)


def reachable_address(url: str, host: str) -> str:
    """`url` as a control plane on `host` tells it: its loopback is not this machine's."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or host in _LOOPBACK:
        return url
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{parts.port}").geturl()


def local_management(control: ControlFile, home: Path, *, token: str = "") -> Management:
    """The management API of what runs on a home, asked with its owner's token.

    Args:
        token: Another one, that was given by hand.
    """
    from headrace.control.auth.home_token import read_home_token

    token = token or given_options().token or read_home_token(home)
    return Management(control.admin_url, token=token, pinned=control.admin_ca)


def find_target(server: str | None, home: Path) -> CommandTarget:
    """The target that the options `--server` and `--home` mean.

    Raises:
        InvalidArgumentError: The server's URL is not valid.
        FailedPreconditionError: The file of contexts cannot be read.
    """
    credentials = given_options()
    if server == LOCAL or (not server and home is not DEFAULT_HOME):
        # A home given by hand or environment is meant, even if it is the same path.
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
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"


def grpc_url(http_url: str, target: str) -> str:
    """Return the target of the second port, with a scheme if it is encrypted."""
    return f"grpcs://{target}" if http_url.startswith("https:") else target
