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

from headrace.cli.options import DEFAULT_HOME

if TYPE_CHECKING:
    from headrace.cli.management import Management


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a command goes: to the server at `url`; if that is empty, to what runs on `home`."""

    home: Path
    url: str = ""

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
            return Management(self.url, actor=actor(), is_remote=True)
        found = control_file(self.home)
        return Management(found.admin_url, actor=actor(), pinned=found.admin_ca)


def find_target(server: str | None, home: Path) -> Target:
    """The target that the options `--server` and `--home` mean.

    Raises:
        InvalidArgumentError: The server's URL is none.
        FailedPreconditionError: The file of contexts cannot be read.
    """
    from headrace.cli.contexts import LOCAL, contexts_file, read_contexts, server_url

    if server == LOCAL:
        return Target(home=home)
    if server:
        return Target(home=home, url=server_url(server))
    if home is not DEFAULT_HOME:  # given by hand or environment, even if it is the same path
        return Target(home=home)
    return Target(home=home, url=read_contexts(contexts_file()).server or "")


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
