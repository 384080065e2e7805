"""Contexts: control planes by name, and the credentials for them.

$XDG_CONFIG_HOME/headrace/contexts.json    {"current": "prod", "contexts": {"prod": {…}}}

It holds tokens: only its owner may read it.
"""

import os
import re
from collections.abc import Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec

from headrace.core import FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import make_private_dir, write_atomic

DEFAULT_HOME: Final = Path(".headrace")
LOCAL: Final = "local"
"""Name for no server: the control plane on `--home`."""
DEFAULT_PORT: Final = 8080
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


class ContextCredentials(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Credentials for a control plane, and the CA of its certificate; empty for none."""

    token: str = ""
    ca_file: str = ""


class NamedContext(ContextCredentials, frozen=True, kw_only=True, omit_defaults=True):
    """Remote control plane with its credentials."""

    server: str
    """URL of its management API."""


class Contexts(msgspec.Struct, frozen=True, kw_only=True):
    """Control planes by name."""

    current: str = ""
    """Name of the current context; empty for the local home."""
    contexts: dict[str, NamedContext]

    @property
    def server(self) -> str:
        """Return the current context's URL; empty for the local home."""
        return self.contexts[self.current].server if self.current in self.contexts else ""

    def access_of(self, url: str) -> ContextCredentials:
        """Return the credentials for `url`: the current context's if that is its URL."""
        for name in (self.current, *self.contexts):
            context = self.contexts.get(name)
            if context is not None and context.server == url and (context.token or context.ca_file):
                return context
        return ContextCredentials()

    def with_server(
        self, name: str, url: str, *, use: bool, access: ContextCredentials | None = None
    ) -> "Contexts":
        """Return the contexts with one added or changed; the first becomes the current one.

        A token goes with its URL: another URL removes it, unless `access` has one.

        Raises:
            InvalidArgumentError: The name or the URL is not allowed.
        """
        if _NAME.fullmatch(name) is None or name == LOCAL:
            reason = (
                "it is reserved for this machine" if name == LOCAL else "use letters, digits, . _ -"
            )
            raise InvalidArgumentError(f"invalid context name {name!r}: {reason}")
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
        """Return the contexts with another current one; `local` for none.

        Raises:
            NotFoundError: The context does not exist.
        """
        if name != LOCAL:
            self._check_known(name)
        return Contexts(current="" if name == LOCAL else name, contexts=self.contexts)

    def without(self, name: str) -> "Contexts":
        """Return the contexts without `name`; without a current one, commands use the local home.

        Raises:
            NotFoundError: The context does not exist.
        """
        self._check_known(name)
        return Contexts(
            current="" if self.current == name else self.current,
            contexts={key: context for key, context in self.contexts.items() if key != name},
        )

    def _check_known(self, name: str) -> None:
        if name not in self.contexts:
            names = ", ".join([LOCAL, *self.contexts])
            raise NotFoundError(f"no context '{name}'; there are: {names}")


def server_url(text: str) -> str:
    """Return the URL of `text`; `host` and `host:port` are HTTP on the management port.

    Raises:
        InvalidArgumentError: The text is not a server URL.
    """
    full = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(full)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidArgumentError(f"{text!r} is not a server URL: {error}") from None
    extra = parts.query or parts.fragment or parts.username or parts.password
    if parts.scheme not in {"http", "https"} or not host or extra:
        msg = f"{text!r} is not a server URL; write it as http://host:{DEFAULT_PORT} or https://…"
        raise InvalidArgumentError(msg)
    if "://" not in text and port is None:
        full = f"http://{parts.netloc}:{DEFAULT_PORT}{parts.path}"
    return full.rstrip("/")


def contexts_file(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the contexts file."""
    home = Path(environment.get("HOME") or "~").expanduser()
    return Path(environment.get("XDG_CONFIG_HOME") or home / ".config") / "headrace/contexts.json"


def read_contexts(path: Path) -> Contexts:
    """Return the stored contexts; none without a file.

    Raises:
        FailedPreconditionError: The file cannot be read.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=Contexts)
    except FileNotFoundError:
        return Contexts(contexts={})
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error
    except UNDECODABLE:
        msg = f"{path} is damaged; repair it, or delete it and add your contexts again"
        raise FailedPreconditionError(msg) from None


def write_contexts(path: Path, contexts: Contexts) -> None:
    """Replace the file in one step; only its owner may read it.

    Raises:
        FailedPreconditionError: The file cannot be written; the old one is unchanged.
    """
    try:
        make_private_dir(path.parent)
        write_atomic(path, msgspec.json.format(msgspec.json.encode(contexts)) + b"\n")
    except OSError as error:
        raise FailedPreconditionError(f"cannot write {path}: {error.strerror}") from error


# State of this command only: these are options of the program, not of a command's function.
_GIVEN: Final[ContextVar[ContextCredentials]] = ContextVar(
    "client_options",
    default=ContextCredentials(),  # noqa: B039  # frozen
)


def given_options() -> ContextCredentials:
    """Return the program's credentials for every control plane of this command."""
    return _GIVEN.get()


def remember_options(*, token: str, token_file: Path | None, ca_file: Path | None) -> None:
    """Store the program's credentials; a token takes precedence over a token file.

    Raises:
        FailedPreconditionError: The file cannot be read.
    """
    if not token and token_file is not None:
        token = read_token(token_file)
    _GIVEN.set(ContextCredentials(token=token, ca_file=str(ca_file or "")))


def read_token(path: Path) -> str:
    """Return the token in a file.

    Raises:
        FailedPreconditionError: The file cannot be read, or has no token.
    """
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not a token"
        raise FailedPreconditionError(f"cannot read a token from {path}: {reason}") from error
    if not text or any(character.isspace() for character in text):
        raise FailedPreconditionError(f"{path} holds no token")
    return text
