"""With what does a command show who it is? Options of the program itself, not of each command."""

from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Final


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """What was given for every control plane that this command asks.

    `token` empty and `ca_file` None where nothing was given.
    """

    token: str = ""
    ca_file: Path | None = None


_NOTHING: Final = ClientOptions()
# Of this command only: commands are functions of their own options, and these are the program's.
_GIVEN: Final[ContextVar[ClientOptions]] = ContextVar("client_options", default=_NOTHING)


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
    from headrace.core import FailedPreconditionError  # noqa: PLC0415  # only here

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
