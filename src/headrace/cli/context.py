"""`headrace context`: control planes by name, and what a command shows to them.

$XDG_CONFIG_HOME/headrace/contexts.json    {"current": "prod", "contexts": {"prod": {…}}}

It holds tokens: only its owner may read it.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import msgspec
import typer

from headrace.cli.options import CommandGroup, Json, argument, option
from headrace.cli.output import Column, say, show_document
from headrace.core import FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, write_atomic

LOCAL: Final = "local"
"""Stands for no server at all: the control plane on `--home`."""
DEFAULT_PORT: Final = 8080
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ContextCredentials(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is shown to a control plane, and who signs its certificate; empty for nothing."""

    token: str = ""
    ca_file: str = ""


class NamedContext(ContextCredentials, frozen=True, kw_only=True, omit_defaults=True):
    """A control plane elsewhere."""

    server: str
    """URL of its management API."""


class Contexts(msgspec.Struct, frozen=True, kw_only=True):
    """Control planes by name."""

    current: str = ""
    """Where commands go; empty is this machine."""
    contexts: dict[str, NamedContext]

    @property
    def server(self) -> str:
        """The current context's URL; empty for this machine."""
        return self.contexts[self.current].server if self.current in self.contexts else ""

    def access_of(self, url: str) -> ContextCredentials:
        """What is shown to the server at `url`: that of the current context if it is that one."""
        for name in (self.current, *self.contexts):
            context = self.contexts.get(name)
            if context is not None and context.server == url and (context.token or context.ca_file):
                return context
        return ContextCredentials()

    def with_server(
        self, name: str, url: str, *, use: bool, access: ContextCredentials | None = None
    ) -> "Contexts":
        """With one more, or another URL for one that is there; the first becomes the current one.

        A token goes with its URL: with another URL it is forgotten, unless `access` has one.

        Raises:
            InvalidArgumentError: The name or the URL is not allowed.
        """
        if _NAME.fullmatch(name) is None or name == LOCAL:
            reason = "it stands for this machine" if name == LOCAL else "use letters, digits, . _ -"
            raise InvalidArgumentError(f"a context cannot be called {name!r}: {reason}")
        server = server_url(url)
        before = self.contexts.get(name)
        if access is None:
            access = (
                before if before is not None and before.server == server else ContextCredentials()
            )
        context = NamedContext(server=server, token=access.token, ca_file=access.ca_file)
        is_first = not self.contexts and not self.current
        return Contexts(
            current=name if use or is_first else self.current,
            contexts={**self.contexts, name: context},
        )

    def using(self, name: str) -> "Contexts":
        """With another current one; `local` for none.

        Raises:
            NotFoundError: There is no such context.
        """
        if name != LOCAL:
            self._check_known(name)
        return Contexts(current="" if name == LOCAL else name, contexts=self.contexts)

    def without(self, name: str) -> "Contexts":
        """With one fewer; if it was the current one, commands go to this machine again.

        Raises:
            NotFoundError: There is no such context.
        """
        self._check_known(name)
        return Contexts(
            current="" if self.current == name else self.current,
            contexts={key: context for key, context in self.contexts.items() if key != name},
        )

    def _check_known(self, name: str) -> None:
        if name not in self.contexts:
            names = ", ".join([LOCAL, *self.contexts])
            raise NotFoundError(f"there is no context '{name}'; there are: {names}")


def server_url(text: str) -> str:
    """The URL that `text` means; `host` and `host:port` are HTTP on the management port.

    Raises:
        InvalidArgumentError: It is none.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is no URL of a server: {error}") from None
    extra = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in {"http", "https"} or not host or extra:
        msg = f"{text!r} is no URL of a server; write it as http://host:{DEFAULT_PORT} or https://…"
        raise InvalidArgumentError(msg)
    if "://" not in text and port is None:
        full = f"http://{parts.netloc}:{DEFAULT_PORT}{parts.path}"
    return full.rstrip("/")


def contexts_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Where the contexts are kept."""
    home = Path(environment.get("HOME") or "~").expanduser()
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "headrace/contexts.json"


def read_contexts(path: Path) -> Contexts:
    """What is in the file; nothing if there is none.

    Raises:
        FailedPreconditionError: It cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contexts)
    except FileNotFoundError:
        return Contexts(contexts={})
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error
    except UNDECODABLE:
        msg = f"{path} is damaged; mend it, or delete it and add your contexts again"
        raise FailedPreconditionError(msg) from None


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Replace the file in one step; only its owner may read it.

    Raises:
        FailedPreconditionError: It cannot be written; the old one stands.
    """
    try:
        make_private_dir(path.parent)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(contexts)) + b"\n")
    except OSError as error:
        raise FailedPreconditionError(f"cannot write {path}: {error.strerror}") from error


# Of this command only: commands are functions of their own options, and these are the program's.
_GIVEN: Final[ContextVar[ContextCredentials]] = ContextVar(
    "client_options",
    default=ContextCredentials(),  # noqa: B039  # frozen
)


def given_options() -> ContextCredentials:
    """What this command was given for every control plane that it asks."""
    return _GIVEN.get()


def remember_options(*, token: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Keep what this command was given; a token wins over a file with one.

    Raises:
        FailedPreconditionError: The file cannot be read.
    """
    if not token and token_file is not None:
        token = read_token(token_file)
    _GIVEN.set(ContextCredentials(token=token, ca_file=str(ca_file or "")))


def read_token(path: Path) -> str:
    """The token in a file.

    Raises:
        FailedPreconditionError: It cannot be read, or has something else.
    """
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no token"
        raise FailedPreconditionError(f"cannot read a token from {path}: {reason}") from error
    if not text or any(character.isspace() for character in text):
        raise FailedPreconditionError(f"{path} holds no token")
    return text


app = CommandGroup(help="Name control planes elsewhere, and choose one: add, use, list, rm.")
_Name = Annotated[str, argument("The context's name.", shown=False)]


@app.command()
def add(
    name: _Name,
    url: Annotated[str | None, argument("Its management API.", metavar="URL")] = None,
    *,
    server: Annotated[str | None, option("The same.", metavar="URL")] = None,
    token_file: Annotated[
        Path | None, option("A file with a token for it, which is kept beside the URL.")
    ] = None,
    ca_file: Annotated[
        Path | None,
        option(
            "Who signs its certificate, where that is none of the usual ones.", shown="the system's"
        ),
    ] = None,
    use: Annotated[bool, option("Make it the current one; the first always is.", "--use")] = False,
) -> None:
    """Remember a control plane under a name; a known name gets the new URL.

    For example:

        headrace context add prod https://models.example

        headrace context add gpu-box gpu-box.lan:8080 --use --token-file ann.token
    """
    if (url is None) == (server is None):
        raise typer.BadParameter("name the control plane's URL, once", param_hint="URL")
    access = None
    if token_file is not None or ca_file is not None:
        access = ContextCredentials(
            token="" if token_file is None else read_token(token_file),
            ca_file="" if ca_file is None else str(ca_file.absolute()),
        )
    path = contexts_file()
    contexts = read_contexts(path).with_server(name, url or server or "", use=use, access=access)
    write_contexts(path, contexts)
    full = contexts.contexts[name].server
    if access is not None and access.token and full.startswith("http://"):
        say("its URL is no https: whoever is on the way can read the token")
    now = "commands go there now" if contexts.current == name else f"`headrace context use {name}`"
    say(f"{name} is {full}; {now}")


@app.command()
def use(name: _Name) -> None:
    """Send commands to a context from now on; `local` means the home on this machine again.

    For example:

        headrace context use prod

        headrace context use local
    """
    path = contexts_file()
    contexts = read_contexts(path).using(name)
    write_contexts(path, contexts)
    say(f"commands go to {contexts.server or 'the home on this machine'}")


@app.command("list")
def list_(*, json: Json = False) -> None:
    """List the contexts; a star marks the current one."""
    contexts = read_contexts(contexts_file())
    current = contexts.current or LOCAL
    servers = {name: context.server for name, context in contexts.contexts.items()}
    columns: dict[str, Column] = {
        "": lambda row: "*" if row[0] == current else "",
        "context": lambda row: row[0],
        "server": lambda row: row[1],
    }
    rows = [(LOCAL, "the home on this machine"), *servers.items()]
    show_document({"current": current, "contexts": servers}, rows, columns, json=json)


@app.command()
def rm(name: _Name) -> None:
    """Forget a context; nothing happens to the control plane itself."""
    path = contexts_file()
    before = read_contexts(path)
    write_contexts(path, before.without(name))
    ends = "; commands go to the home on this machine" if before.current == name else ""
    say(f"{name} is forgotten{ends}")
