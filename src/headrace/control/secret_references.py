"""References to secrets that no setting holds: `${NAME}` anywhere in a text, or `file:/PATH`.

`file:/PATH` as the whole text stands for the file's content, without the end of its line. Errors
and log lines show the reference, never what it resolved to.
"""

from collections.abc import Callable, Iterable, Mapping, MutableMapping
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError
from headrace.core.redact import VARIABLE, remember_resolved
from headrace.core.variables import filled_in, url_filled_in

_FILE: Final = "file:"
_MOST_BYTES: Final = 1 << 20
_OURS: Final = frozenset({"HEADRACE_TOKEN", "HEADRACE_STATE_URL"})
_OF_ARTIFACTS: Final = "HEADRACE_ARTIFACTS_"
"""What begins so is for the store of models alone; who has it may change every model."""


def is_reference(text: str) -> bool:
    """Whether `text` is nothing but a reference, so that it can be told to everybody."""
    return text.startswith(_FILE) or VARIABLE.fullmatch(text) is not None


def resolve_references(text: str, environment: Mapping[str, str] | None = None) -> str:
    """What `text` means, with each reference replaced by what it stands for.

    Args:
        environment: None for this process's.

    Raises:
        FailedPreconditionError: A variable is not set, or a file cannot be read; the message names
            it, and never what is in it.
    """
    if text.startswith(_FILE):
        return _read(Path(text.removeprefix(_FILE)))
    return filled_in(text, environment=environment)


def resolve_url(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The same of a URL: a variable that is a part of one may have any characters.

    Raises:
        FailedPreconditionError: As above.
    """
    if is_reference(text):
        return resolve_references(text, environment)
    return url_filled_in(text, environment=environment)


def secret_reader(text: str, environment: Mapping[str, str] | None = None) -> Callable[[], str]:
    """Gives what `text` means, whenever it is asked: a file is read again, a variable never.

    Raises:
        FailedPreconditionError: As `resolve_references`; also whoever calls it may.
    """
    now = resolve_references(text, environment)
    if text.startswith(_FILE):
        return lambda: resolve_references(text)
    return lambda: now


def forget_secrets(texts: Iterable[str], environment: MutableMapping[str, str]) -> None:
    """Take the variables that references name out of an environment, and those of our own.

    Whatever is started later inherits the rest: models have no use for the state's password.
    """
    named = {name for text in texts for name in VARIABLE.findall(text)}
    artifacts = {name for name in environment if name.startswith(_OF_ARTIFACTS)}
    for name in named | _OURS | artifacts:
        environment.pop(name, None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES)
        secret = data.decode("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is no text in UTF-8"
        raise FailedPreconditionError(f"cannot read the secret in {path}: {reason}") from error
    remember_resolved(secret, f"{_FILE}{path}")
    return secret


def absolute_reference(text: str) -> str:
    """The same reference for a process that works in another directory."""
    if not text.startswith(_FILE):
        return text
    return f"{_FILE}{Path(text.removeprefix(_FILE)).absolute()}"
