"""How does a command that calls a model say who asks? Options of those commands, and their values.

Not those of `client_options`: these are shown to a gateway or a replica, not to a control plane.
"""

from pathlib import Path
from typing import Annotated

import typer
from typer.models import OptionInfo

Key = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="HEADRACE_API_KEY",
        help="An API key that says who asks; @FILE reads it, so that no list of processes shows "
        "it.",
        show_default="none",
    ),
]
Token = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="HEADRACE_INFER_TOKEN",
        help="A bearer token (JWT) that says who asks; @FILE reads it.",
        show_default="none",
    ),
]
Cert = Annotated[
    Path | None,
    typer.Option(
        "--cert",
        envvar="HEADRACE_CLIENT_CERT",
        help="A certificate (PEM) that says who asks.",
        show_default="none",
    ),
]
CertKey = Annotated[
    Path | None,
    typer.Option(
        "--cert-key",
        envvar="HEADRACE_CLIENT_CERT_KEY",
        help="Its private key (PEM).",
        show_default="none",
    ),
]
AllowInsecure = Annotated[
    bool,
    typer.Option(
        "--allow-insecure", help="Send a key or a token to another machine in plain text, too."
    ),
]


def ca_file_option(shown: str) -> OptionInfo:
    """The option `--ca-file`; `shown`: who is trusted without it."""
    made: OptionInfo = typer.Option(
        "--ca-file",
        envvar="HEADRACE_CA_FILE",
        help="The authorities (PEM) that sign for the server.",
        show_default=shown,
    )
    return made


def read_secret(given: str | None, flag: str) -> str | None:
    """A secret, read from a file if `given` is `@FILE`."""
    if given is None or not given.startswith("@"):
        return given
    path = Path(given[1:])
    if not path.is_file():
        raise typer.BadParameter(f"there is no file '{path}'", param_hint=flag)
    return path.read_text().strip()


def certificate_of(cert: Path | None, key: Path | None) -> tuple[Path, Path] | None:
    """The files of a certificate and its key, if both were given."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        hint = "--cert" if cert is None else "--cert-key"
        raise typer.BadParameter("--cert and --cert-key go together", param_hint=hint)
    return cert, key
