"""Which control planes does this user know by name? A small file of its own, and the rules for it.

$XDG_CONFIG_HOME/headrace/contexts.json    {"current": "prod", "contexts": {"prod": {…}}}

It holds tokens: only its owner may read it.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

LOCAL: Final = "local"
"""Stands for no server at all: the control plane on `--home`."""

DEFAULT_PORT: Final = 8080
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerAccess:
    """What is shown to a server, and who signs its certificate; empty and None for nothing."""

    token: str = ""
    ca_file: Path | None = None


_NOTHING: Final = ServerAccess()


@dataclass(frozen=True, slots=True, kw_only=True)
class Contexts:
    """Servers by name; `current` is empty while commands stay on this machine.

    `access`: by the same names, where there is any.
    """

    current: str = ""
    servers: Mapping[str, str] = field(default_factory=dict)
    access: Mapping[str, ServerAccess] = field(default_factory=dict)

    @property
    def server(self) -> str | None:
        """The current context's URL; None for this machine."""
        return self.servers.get(self.current)

    def access_of(self, url: str) -> ServerAccess:
        """What is shown to the server at `url`: that of the current context if it is that one."""
        names = [self.current, *self.servers]
        found = (self.access[name] for name in names if self._leads_to(name, url))
        return next(found, _NOTHING)

    def _leads_to(self, name: str, url: str) -> bool:
        return name in self.access and self.servers.get(name) == url

    def with_server(
        self, name: str, url: str, *, use: bool, access: ServerAccess = _NOTHING
    ) -> "Contexts":
        """With one more, or another URL for one that is there; the first becomes the current one.

        A token goes with its URL: with another URL it is forgotten, unless `access` has one.

        Raises:
            InvalidArgumentError: The name or the URL is not allowed.
        """
        from headrace.core import InvalidArgumentError

        if _NAME.fullmatch(name) is None or name == LOCAL:
            reason = "it stands for this machine" if name == LOCAL else "use letters, digits, . _ -"
            msg = f"a context cannot be called {name!r}: {reason}"
            raise InvalidArgumentError(msg)
        servers = {**self.servers, name: server_url(url)}
        is_first = not self.servers and not self.current
        known = dict(self.access)
        if access != _NOTHING:
            known[name] = access
        elif self.servers.get(name) != servers[name]:
            known.pop(name, None)
        current = name if use or is_first else self.current
        return Contexts(current=current, servers=servers, access=known)

    def using(self, name: str) -> "Contexts":
        """With another current one; `local` for none.

        Raises:
            NotFoundError: There is no such context.
        """
        if name == LOCAL:
            return replace(self, current="")
        self._check_known(name)
        return replace(self, current=name)

    def without(self, name: str) -> "Contexts":
        """With one fewer; if it was the current one, commands go to this machine again.

        Raises:
            NotFoundError: There is no such context.
        """
        self._check_known(name)
        servers = {known: url for known, url in self.servers.items() if known != name}
        access = {known: one for known, one in self.access.items() if known != name}
        current = "" if self.current == name else self.current
        return Contexts(current=current, servers=servers, access=access)

    def _check_known(self, name: str) -> None:
        from headrace.core import NotFoundError

        if name not in self.servers:
            known = ", ".join([LOCAL, *self.servers])
            msg = f"there is no context '{name}'; there are: {known}"
            raise NotFoundError(msg)


def server_url(text: str) -> str:
    """The URL that `text` means; `host` and `host:port` are HTTP on the management port.

    Raises:
        InvalidArgumentError: It is none.
    """
    from headrace.core import InvalidArgumentError

    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        msg = f"{text!r} is no URL of a server: {error}"
        raise InvalidArgumentError(msg) from None
    extra = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in {"http", "https"} or not host or extra:
        msg = f"{text!r} is no URL of a server; write it as http://host:{DEFAULT_PORT} or https://…"
        raise InvalidArgumentError(msg)
    if "://" not in text and port is None:
        full = f"http://{parts.netloc}:{DEFAULT_PORT}{parts.path}"
    return full.rstrip("/")


def contexts_file(environment: Mapping[str, str] | None = None) -> Path:
    """Where the contexts are kept."""
    given = os.environ if environment is None else environment
    base = given.get("XDG_CONFIG_HOME") or str(
        Path(given.get("HOME") or "~").expanduser() / ".config"
    )
    return Path(base) / "headrace" / "contexts.json"


def read_contexts(path: Path) -> Contexts:
    """What is in the file; nothing if there is none.

    Raises:
        FailedPreconditionError: It cannot be read.
    """
    from headrace.core import FailedPreconditionError

    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Contexts()
    except OSError as error:
        msg = f"cannot read {path}: {error.strerror}"
        raise FailedPreconditionError(msg) from error
    try:
        document = json.loads(data)
        contexts = document["contexts"].items()
        servers = {str(name): str(one["server"]) for name, one in contexts}
        access = {str(name): _access(one) for name, one in contexts if one.keys() - {"server"}}
        current = str(document.get("current") or "")
        return Contexts(current=current, servers=servers, access=access)
    except (ValueError, TypeError, KeyError, AttributeError):
        msg = f"{path} is damaged; mend it, or delete it and add your contexts again"
        raise FailedPreconditionError(msg) from None


def _access(one: Mapping[str, object]) -> ServerAccess:
    ca_file = one.get("ca_file")
    return ServerAccess(
        token=str(one.get("token") or ""), ca_file=Path(str(ca_file)) if ca_file else None
    )


def _told(access: ServerAccess) -> dict[str, str]:
    token = {"token": access.token} if access.token else {}
    return token | ({"ca_file": str(access.ca_file)} if access.ca_file else {})


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Replace the file in one step; only its owner may read it.

    Raises:
        FailedPreconditionError: It cannot be written; the old one stands.
    """
    from headrace.core import FailedPreconditionError
    from headrace.core.files import make_private_dir, write_atomic

    document = {
        "current": contexts.current,
        "contexts": {
            name: {"server": url, **_told(contexts.access.get(name, _NOTHING))}
            for name, url in contexts.servers.items()
        },
    }
    try:
        make_private_dir(path.parent)
        write_atomic(path, json.dumps(document, indent=2).encode() + b"\n")
    except OSError as error:
        msg = f"cannot write {path}: {error.strerror}"
        raise FailedPreconditionError(msg) from error
