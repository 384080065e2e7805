"""How people log in by a browser, out of flags, the environment and a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from headrace.control.settings import OidcSettings

_NEEDED = ("issuer", "client_id", "redirect_url")


def oidc_settings(
    file: Path | None,
    *,
    issuer: str,
    client_id: str,
    client_secret: str,
    redirect_url: str,
    roles: Sequence[str],
) -> "OidcSettings | None":
    """The settings; a flag, or its variable, wins over the file. None where there are none.

    Raises:
        BadParameter: Something is missing, or cannot be used.
        FailedPreconditionError: The file cannot be read.
    """
    import msgspec  # noqa: PLC0415  # only here

    from headrace.control.secret_references import absolute_reference  # noqa: PLC0415  # only here
    from headrace.control.settings import OidcSettings  # noqa: PLC0415  # only here

    given = {
        "issuer": issuer,
        "client_id": client_id,
        "client_secret": client_secret,
        "redirect_url": redirect_url,
        "roles": tuple(roles),
    }
    document = _read(file) | {name: value for name, value in given.items() if value}
    if not document:
        return None
    if missing := [name for name in _NEEDED if not document.get(name)]:
        flags = ", ".join(f"--oidc-{name.replace('_', '-')}" for name in missing)
        msg = f"logging in by a browser needs also {flags}"
        raise typer.BadParameter(msg)
    document["client_secret"] = absolute_reference(str(document.get("client_secret", "")))
    try:
        return msgspec.convert(document, OidcSettings)
    except msgspec.ValidationError as error:
        raise typer.BadParameter(str(error), param_hint="--oidc-file") from error


def _read(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    from headrace.core import FailedPreconditionError  # noqa: PLC0415  # only here
    from headrace.core.spec_yaml import read_yaml  # noqa: PLC0415  # only here

    try:
        found = read_yaml(file.read_text("utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read {file}: {getattr(error, 'strerror', None) or 'it is no text'}"
        raise FailedPreconditionError(msg) from error
    if found.mistakes or not isinstance(found.value, dict):
        reason = "; ".join(map(str, found.mistakes)) or "it holds no settings"
        raise typer.BadParameter(f"{file}: {reason}", param_hint="--oidc-file")
    return found.value
