"""`headrace context`: control planes by name, and what a command shows to them.

$XDG_CONFIG_HOME/headrace/contexts.json    {"current": "prod", "contexts": {"prod": {…}}}

It holds tokens: only its owner may read it.
"""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import json
import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from headrace.cli.options import CommandGroup, Json

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


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What was given for every control plane that this command asks.

    `token` empty and `ca_file` None where nothing was given.
    """

    token: str = ""
    ca_file: Path | None = None


_NO_OPTIONS: Final = ClientOptions()
# Of this command only: commands are functions of their own options, and these are the program's.
_GIVEN: Final[ContextVar[ClientOptions]] = ContextVar("client_options", default=_NO_OPTIONS)


def given_options() -> ClientOptions:
    """What this command was given."""
    return _GIVEN.get()


def remember_options(*, token: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Keep what this command was given; a token wins over a file with one.

    Raises:
        FailedPreconditionError: The file cannot be read.
    """
    if not token and token_file is not None:
        token = read_token(token_file)
    _GIVEN.set(ClientOptions(token=token, ca_file=ca_file))


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        FailedPreconditionError: It cannot be read, or has something else.
    """
    from headrace.core import FailedPreconditionError  # only here

    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no token"
        msg = f"cannot read a token from {path}: {reason}"
        raise FailedPreconditionError(msg) from error
    if not text or any(character.isspace() for character in text):
        msg = f"{path} holds no token"
        raise FailedPreconditionError(msg)
    return text


app = CommandGroup(help="Name control planes elsewhere, and choose one: add, use, list, rm.")
_Name = Annotated[str, typer.Argument(help="The context's name.", show_default=False)]


@app.command()
def add(
    name: _Name,
    url: Annotated[str | None, typer.Argument(metavar="URL", help="Its management API.")] = None,
    *,
    server: Annotated[str | None, typer.Option(metavar="URL", help="The same.")] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with a token for it, which is kept beside the URL.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            help="Who signs its certificate, where that is none of the usual ones.",
            show_default="the system's",
        ),
    ] = None,
    use: Annotated[
        bool, typer.Option("--use", help="Make it the current one; the first always is.")
    ] = False,
) -> None:
    """Remember a control plane under a name; a known name gets the new URL.

    For example:

        headrace context add prod https://models.example

        headrace context add gpu-box gpu-box.lan:8080 --use --token-file ann.token
    """
    from headrace.cli.output import say

    if (url is None) == (server is None):
        msg = "name the control plane's URL, once"
        raise typer.BadParameter(msg, param_hint="URL")
    access = ServerAccess(
        token=read_token(token_file) if token_file is not None else "",
        ca_file=ca_file.absolute() if ca_file is not None else None,
    )
    path = contexts_file()
    contexts = read_contexts(path).with_server(name, url or server or "", use=use, access=access)
    write_contexts(path, contexts)
    if access.token and contexts.servers[name].startswith("http://"):
        say("its URL is no https: whoever is on the way can read the token")
    now = "commands go there now" if contexts.current == name else f"`headrace context use {name}`"
    say(f"{name} is {contexts.servers[name]}; {now}")


@app.command()
def use(name: _Name) -> None:
    """Send commands to a context from now on; `local` means the home on this machine again.

    For example:

        headrace context use prod

        headrace context use local
    """
    from headrace.cli.output import say

    path = contexts_file()
    contexts = read_contexts(path).using(name)
    write_contexts(path, contexts)
    say(f"commands go to {contexts.server or 'the home on this machine'}")


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List the contexts; a star marks the current one."""
    from headrace.cli.output import show, table, write_json

    contexts = read_contexts(contexts_file())
    if json:
        write_json({"current": contexts.current or LOCAL, "contexts": dict(contexts.servers)})
        return
    everything = {LOCAL: "the home on this machine", **contexts.servers}
    current = contexts.current or LOCAL
    show(
        table(
            (("*" if name == current else "", name, url) for name, url in everything.items()),
            *("", "context", "server"),
        )
    )


@app.command()
def rm(name: _Name) -> None:
    """Forget a context; nothing happens to the control plane itself."""
    from headrace.cli.output import say

    path = contexts_file()
    before = read_contexts(path)
    write_contexts(path, before.without(name))
    ends = "; commands go to the home on this machine" if before.current == name else ""
    say(f"{name} is forgotten{ends}")
