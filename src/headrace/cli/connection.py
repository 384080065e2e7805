"""Which control plane does a command talk to?

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
from typing import TYPE_CHECKING

from headrace.cli.client_options import given_options
from headrace.cli.options import DEFAULT_HOME

if TYPE_CHECKING:
    from headrace.cli.management import Management
    from headrace.control import ControlFile


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
        from headrace.cli.management import Management
        from headrace.cli.running import control_file

        if self.is_remote:
            return Management(self.url, token=self.token, ca_file=self.ca_file, is_remote=True)
        return local_management(control_file(self.home), self.home, token=self.token)


def local_management(control: "ControlFile", home: Path, *, token: str = "") -> "Management":
    """The management API of what runs on a home, asked with its owner's token.

    Args:
        token: Another one, that was given by hand.
    """
    from headrace.cli.management import Management
    from headrace.control.access.home_token import read_home_token

    given = token or given_options().token
    return Management(
        control.admin_url, token=given or read_home_token(home), pinned=control.admin_ca
    )


def home_token(home: Path) -> str:
    """The admin token of a home on this machine.

    Raises:
        FailedPreconditionError: There is none, or it is somebody else's.
    """
    from headrace.control.access.home_token import FILE_NAME, read_home_token
    from headrace.core import FailedPreconditionError

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
    from headrace.cli.contexts import LOCAL, contexts_file, read_contexts, server_url

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
