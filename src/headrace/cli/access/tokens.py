"""`headrace tokens`: credentials of the management API."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from headrace.cli.connection import home_token
from headrace.cli.options import (
    DEFAULT_HOME,
    CommandGroup,
    ControlPlane,
    Home,
    Json,
    span_s,
)
from headrace.cli.output import say, table, write, write_json
from headrace.core.files import write_atomic


def hand_over(
    made: Mapping[str, Any], field: str, told: str, *, out: Path | None, json: bool, more: str = ""
) -> None:
    """Write what was made into a file, or print it.

    Args:
        made: As the API tells it.
        field: Where in it the secret stands; also what it is called.
        told: Of whom it is, as in `key ID of shop`.
        out: For its owner only; None prints it.
        more: Said of it where it is printed.
    """
    secret, name = made[field], f"{field} {made['id']} of {told}"
    if out is not None:
        write_atomic(out, f"{secret}\n".encode())
        say(f"{name} is in {out}")
        made = {**made, field: ""}
    if json:
        write_json(made)
    elif out is None:
        say(f"{name}{more}; it is not shown again")
        write(secret)


def id_of(text: str, prefixes: Collection[str]) -> str:
    """The id or name in what was given, fit for a path; a whole credential has its id too."""
    parts = text.split("_")
    is_whole = len(parts) > 2 and parts[0] in prefixes  # noqa: PLR2004  # prefix, id, secret
    return quote(parts[1] if is_whole else text, safe="")


_PREFIXES: Final = ("hrt", "hrs")
app = CommandGroup(help="Tokens of the management API: show, create, list, revoke.")


@app.command()
def show(*, home: Home = DEFAULT_HOME) -> None:
    """Print the admin token of a home on this machine, and nothing else.

    It is made at the first start, in a file that only the home's owner can read. Who lost it
    deletes that file and starts the system again: that makes a new one, and the old one is void.

    For example:

        curl -H "authorization: Bearer $(headrace token show)" localhost:8080/api/v1/status
    """
    write(home_token(home))


@app.command()
def create(
    owner: Annotated[str, typer.Argument(help="The service account; made if it is not there.")],
    *,
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="viewer, operator or admin, or limited: operator:fraud, viewer:model/forest; of "
            "an account that is new. May be given several times.",
            show_default="what the account has",
        ),
    ] = None,
    expires_in: Annotated[str, typer.Option(help="As 90s, 15m, 12h, 30d or 8w; or never.")] = "90d",
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this file, for its owner only.", show_default="print it"),
    ] = None,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Make a token; it is shown this once, and only its hash is kept.

    For example:

        headrace tokens create ci --role operator:fraud --expires-in 30d

        headrace tokens create prometheus --role viewer --expires-in never --out prometheus.token
    """
    body = {
        "owner": owner,
        "roles": role or [],
        "expires_in_s": span_s(expires_in, "--expires-in"),
    }
    made = plane.connect().post("/api/v1/tokens", body)
    hand_over(made, "token", owner, out=out, json=json)


@app.command("list")
def list_(
    *,
    sessions: Annotated[
        bool, typer.Option("--sessions", help="Browsers that people logged in with, instead.")
    ] = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are expired or revoked.")
    ] = False,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """List tokens: whose, since when, until when. The tokens themselves nobody has."""
    from headrace.cli.output import show
    from headrace.cli.rollout.view import clock_text

    kind = "session" if sessions else "token"
    found = plane.connect().get("/api/v1/tokens", kind=kind)["tokens"]
    chosen = [one for one in found if everything or one["state"] == "valid"]
    if json:
        write_json(chosen)
        return
    rows = (
        (
            one["id"],
            one["owner"],
            one["state"],
            clock_text(one["created"]),
            one["created_by"],
            "never" if one["expires"] is None else clock_text(one["expires"]),
        )
        for one in chosen
    )
    show(table(rows, kind, "owner", "state", "made", "by", "expires"))


@app.command()
def revoke(
    token: Annotated[str, typer.Argument(metavar="ID", help="As `tokens list` shows it.")],
    *,
    plane: ControlPlane,
) -> None:
    """Make a token or a session void, at once.

    For example:

        headrace tokens revoke k7m2p9x4w3ab
    """
    revoked = plane.connect().delete(f"/api/v1/tokens/{id_of(token, _PREFIXES)}")
    say(f"{revoked['kind']} {revoked['id']} of {revoked['owner']} is void")
