"""`headrace models keygen`, `sign` and `verify`: who vouches for a model version."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import DEFAULT_HOME, Artifacts, Home, Json, Server

if TYPE_CHECKING:
    from headrace.registry import VersionSignature


def keygen(
    out: Annotated[
        Path, typer.Option("--out", help="Where the two files go.", file_okay=False)
    ] = Path(),
) -> None:
    """Make a key pair to sign model versions with (Ed25519).

    The private key, model-signing.pem, can be read by you alone; the public one goes to
    `security.trusted_keys` of whoever shall trust you.

    For example:

        headrace models keygen --out keys
    """
    from headrace.cli.output import say
    from headrace.registry.signing import make_key, read_public_keys, write_keys

    private, public = write_keys(out, make_key())
    say(f"{private} signs: keep it secret; {public} is for `security.trusted_keys` in the spec")
    say(f"the key is called {read_public_keys(public)[0].id}")


def sign(
    reference: Annotated[
        str, typer.Argument(metavar="NAME:VERSION", help="Which version.", show_default=False)
    ],
    *,
    key: Annotated[
        Path,
        typer.Option("--key", help="The private key, PEM.", dir_okay=False, show_default=False),
    ],
    content: Annotated[
        Path | None,
        typer.Option(
            "--content",
            help="The model as you have it; refused if something else is stored.",
            exists=True,
            show_default=False,
        ),
    ] = None,
    artifacts: Artifacts = "",
    json: Json = False,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Sign a version: its name, number, content, runtime, tensors and class names.

    The key is read here and sent nowhere. What a server elsewhere says of the version is what is
    signed, so compare it with your own copy by --content.

    For example:

        headrace models sign fraud:3 --key keys/model-signing.pem --content fraud.onnx
    """
    import time

    from headrace.cli.connection import actor, find_target
    from headrace.cli.model_store import model_store
    from headrace.cli.output import say, write_json
    from headrace.core import InvalidArgumentError
    from headrace.registry import read_content
    from headrace.registry.signing import key_of, read_private_key
    from headrace.registry.signing import sign as sign_version

    name, _, number = reference.partition(":")
    if not number:
        msg = f"'{reference}' names no version; write it as {name}:VERSION"
        raise typer.BadParameter(msg, param_hint="NAME:VERSION")
    private = read_private_key(key)
    store = model_store(find_target(server, home), artifacts=artifacts)
    version = store.get(reference)
    store.verify(version)
    if content is not None and (found := read_content(content).digest) != version.digest:
        msg = (
            f"{content} has digest {found}, but {reference} is {version.digest}; nothing is signed"
        )
        raise InvalidArgumentError(msg)
    made = sign_version(version, private, at=time.time(), by=actor())  # noqa: TID251  # what is told, not decided by
    store.add_signature(version, made)
    if json:
        write_json(made)
    say(f"{reference} is signed by {key_of(made).id}")


def verify(
    reference: Annotated[
        str,
        typer.Argument(metavar="NAME[:VERSION]", help="Which version.", show_default=False),
    ],
    *,
    trusted: Annotated[
        list[Path],
        typer.Option(
            "--trusted",
            help="Public keys, PEM; may be given several times.",
            dir_okay=False,
            show_default=False,
        ),
    ],
    artifacts: Artifacts = "",
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Prove that a version is what one of the trusted keys signed; exit status 1 if not.

    Without a number, the newest one. On a home its content is compared with the digest, too; a
    server elsewhere compares it when it serves the version.

    For example:

        headrace models verify fraud:3 --trusted keys/model-signing.pub.pem
    """
    from headrace.cli.connection import find_target
    from headrace.cli.model_store import model_store
    from headrace.cli.output import say
    from headrace.registry.signing import check_signed, key_of, read_public_keys

    keys = [key for path in trusted for key in read_public_keys(path)]
    store = model_store(find_target(server, home), artifacts=artifacts)
    version = store.get(reference)
    store.verify(version)
    signatures = store.signatures([version])[version.reference]
    found = check_signed(version, signatures, keys)
    say(f"{version.reference} is what {key_of(found).id} signed ({signed_text(found)})")


def signed_text(signature: "VersionSignature") -> str:
    """A signature on one line: by which key, and who and when it says."""
    from datetime import UTC, datetime

    from headrace.core import InvalidArgumentError
    from headrace.registry.signing import key_of

    try:
        key = key_of(signature).id
    except InvalidArgumentError:
        return "by a damaged key"
    at = datetime.fromtimestamp(signature.at, UTC)
    return f"by {key}, {at:%Y-%m-%d %H:%M} UTC, {signature.by or '?'}"
