"""Control plane that a command talks to, and what runs on a home.

A flag wins over an environment variable, that over the current context, and that over the home on
this machine. `--home`, or `HEADRACE_HOME`, given without a server means that home, whatever the
current context is.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import getpass
import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from headrace.cli.context import LOCAL, contexts_file, given_options, read_contexts, server_url
from headrace.cli.management import Management
from headrace.cli.options import DEFAULT_HOME
from headrace.control import ControlFile, read_control_file
from headrace.control.app.log_files import LogFiles, merged_tail, render_line
from headrace.control.app.settings import original_of, read_last_control_file, resolve_url
from headrace.control.state import home_url, references_in
from headrace.core import FailedPreconditionError, HeadraceError, NotFoundError, UnavailableError

_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def control_file(home: Path) -> ControlFile:
    """Where the control plane on `home` is reached.

    Raises:
        UnavailableError: None was started there.
    """
    found = read_control_file(home)
    if found is None:
        msg = f"nothing runs on {home}{copy_note(original_of(home))}; `headrace up` starts it"
        raise UnavailableError(msg, retry_after_s=None)
    return found


def copy_note(original: str) -> str:
    """What to add where nothing runs on a home that is a copy of the one at `original`."""
    return f" (a copy of {original}, which is left alone)" if original else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gateway:
    """Where a gateway is reached, and the file of the certificate it shows there, if it is known.

    `server_name`: a name in that certificate, for which it is trusted although it is reached by
    another.
    """

    url: str
    ca_file: str | None = None
    server_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a command goes: to the server at `url`; if that is empty, to what runs on `home`.

    `token`: shown to it; empty for that of the home's owner, or none. `ca_file`: who signs its
    certificate, if that is none of the usual ones.
    """

    home: Path
    url: str = ""
    token: str = ""
    ca_file: Path | None = None

    @property
    def is_remote(self) -> bool:
        """Whether it was named by a URL; files of this machine then have to be sent to it."""
        return bool(self.url)

    def management(self) -> "Management":
        """Its management API.

        Raises:
            UnavailableError: Nothing runs on the home.
        """
        if self.is_remote:
            return Management(self.url, token=self.token, ca_file=self.ca_file, is_remote=True)
        return local_management(control_file(self.home), self.home, token=self.token)


def gateway(target: Target) -> Gateway:
    """The gateway of a target.

    That of a home goes on without its control plane, so a dead one's word counts.

    Raises:
        UnavailableError: None was started there.
    """
    if target.is_remote:
        api = target.management()
        url = seen_from_here(api.get("/api/v1/status")["addresses"]["http"], api.host)
        return Gateway(url=url)
    home = target.home
    found = read_last_control_file(home)
    if found is None:
        note = copy_note(original_of(home))
        msg = f"nothing runs on {home}{note}; `headrace up` starts it, --url names another server"
        raise UnavailableError(msg, retry_after_s=None)
    if not found.gateway_ca:
        return Gateway(url=found.http_url)
    return Gateway(
        url=found.http_url,
        ca_file=found.gateway_ca,
        server_name=_name_in(Path(found.gateway_ca), urlsplit(found.http_url).hostname or ""),
    )


def _name_in(certificate: Path, host: str) -> str:
    """A name that a certificate holds, for `host` if it does not hold that; empty for none."""
    from headrace.gateway.pem import read_certificates  # few gateways encrypt

    try:
        names = read_certificates(certificate.read_bytes())[0].names
    except (OSError, HeadraceError):
        return ""
    hosts = [name for name in names if ":" not in name and "@" not in name]
    if host in names or not hosts:
        return ""
    return hosts[0].replace("*", "gateway")


def seen_from_here(url: str, host: str) -> str:
    """`url` as a control plane on `host` tells it: its loopback is not this machine's."""
    parts = urlsplit(url)
    if parts.hostname not in _LOOPBACK or host in _LOOPBACK:
        return url
    name = f"[{host}]" if ":" in host else host
    return parts._replace(netloc=f"{name}:{parts.port}").geturl()


def endpoint_names(target: Target) -> list[str]:
    """The endpoints that a control plane knows; none if it does not answer."""
    try:
        status = target.management().get("/api/v1/status")
    except HeadraceError:
        return []
    return [endpoint["name"] for endpoint in status["endpoints"]]


def log_lines(home: Path, *, tail: int, source: str, log_format: str) -> list[str]:
    """The newest lines of all logs of `home`, read from the files: nothing has to run.

    Raises:
        NotFoundError: There are none, or none of `source`.
    """
    logs = LogFiles(directory=home / "logs")
    if not logs.paths(source):
        names = ", ".join(logs.names())
        msg = (
            f"there is no log of '{source}'; there are: {names}" if names else f"no logs in {home}"
        )
        raise NotFoundError(msg)
    now = datetime.now(UTC)
    of_day_s = (now - now.replace(hour=0, minute=0, second=0, microsecond=0)).total_seconds()
    lines = merged_tail(logs, tail, now_of_day_s=of_day_s, source=source)
    return [render_line(line, log_format=log_format) for line in lines]


def references_in_use(home: Path, state_url: str = "") -> set[str]:
    """`NAME:VERSION` of every model version that the stored state serves, or may go back to.

    What is stored is served as soon as a control plane starts, so it counts without one too.

    Args:
        state_url: Where the state is; empty for the home's own file.
    """
    url = resolve_url(state_url) or home_url(home)
    return references_in(url, legacy=home / "state.json")


def local_management(control: "ControlFile", home: Path, *, token: str = "") -> "Management":
    """The management API of what runs on a home, asked with its owner's token.

    Args:
        token: Another one, that was given by hand.
    """
    from headrace.cli.management import Management
    from headrace.control.auth.home_token import read_home_token

    given = token or given_options().token
    return Management(
        control.admin_url, token=given or read_home_token(home), pinned=control.admin_ca
    )


def home_token(home: Path) -> str:
    """The admin token of a home on this machine.

    Raises:
        FailedPreconditionError: There is none, or it is somebody else's.
    """
    from headrace.control.auth.home_token import FILE_NAME, read_home_token

    token = read_home_token(home)
    if not token:
        path = home / FILE_NAME
        msg = f"cannot read {path}; `headrace up` makes it, and only the home's owner can read it"
        raise FailedPreconditionError(msg)
    return token


def find_target(server: str | None, home: Path) -> Target:
    """The target that the options `--server` and `--home` mean.

    Raises:
        InvalidArgumentError: The server's URL is none.
        FailedPreconditionError: The file of contexts cannot be read.
    """
    given = given_options()
    is_home = server == LOCAL or (not server and home is not DEFAULT_HOME)
    if is_home:  # given by hand or environment, even if it is the same path
        return Target(home=home, token=given.token)
    contexts = read_contexts(contexts_file())
    url = server_url(server) if server else contexts.server or ""
    kept = contexts.access_of(url)
    return Target(
        home=home,
        url=url,
        token=given.token or (kept.token if url else ""),
        ca_file=given.ca_file or kept.ca_file,
    )


def connect(server: str | None, home: Path) -> "Management":
    """The management API that the options `--server` and `--home` mean.

    Raises:
        UnavailableError: Nothing runs on the home.
    """
    return find_target(server, home).management()


def actor() -> str:
    """Who asks: `user@host`, as it stands in histories and events."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = f"uid {os.getuid()}"
    return f"{user}@{socket.gethostname()}"
