"""`headrace keys`: API keys of callers."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated, Final

import typer

from headrace.cli.options import (
    CommandGroup,
    ControlPlane,
    Json,
    span_s,
)
from headrace.cli.output import say, show, table, write_json

_PREFIXES: Final = ("hr",)
app = CommandGroup(help="API keys of callers: create, list, revoke.")


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="How callers with it are named, in logs too.")],
    *,
    scope: Annotated[
        list[str] | None,
        typer.Option(
            help="What it may call: infer:ENDPOINT, or with a version as in infer:fraud:2. May be "
            "given several times.",
            show_default="infer:*, everything",
        ),
    ] = None,
    tier: Annotated[str, typer.Option(help="One of the spec's.")] = "",
    expires_in: Annotated[
        str,
        typer.Option("--expires-in", "--expires", help="As 90s, 15m, 12h, 30d or 8w; or never."),
    ] = "90d",
    out: Annotated[
        Path | None,
        typer.Option(help="Write it to this file, for its owner only.", show_default="print it"),
    ] = None,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Make an API key; it is shown this once, and only its hash is kept.

    The gateway takes it when this returns.

    For example:

        headrace keys create shop --scope infer:fraud --expires-in 30d

        curl -H "x-api-key: $KEY" http://127.0.0.1:8000/v2/models/fraud/infer -d @row.json
    """
    from headrace.cli.access.tokens import hand_over

    body = {
        "name": name,
        "tier": tier,
        "expires_in_s": span_s(expires_in, "--expires-in"),
        **({"scopes": scope} if scope else {}),
    }
    made = plane.connect().post("/api/v1/keys", body)
    more = f" for {', '.join(made['scopes'])}"
    hand_over(made, "key", name, out=out, json=json, more=more)


@app.command("list")
def list_(
    *,
    everything: Annotated[
        bool, typer.Option("--all", help="Also those that are expired or revoked.")
    ] = False,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """List keys: whose, for what, until when. The keys themselves nobody has."""
    from headrace.cli.rollout.view import clock_text

    found = plane.connect().get("/api/v1/keys")["keys"]
    chosen = [one for one in found if everything or one["state"] == "valid"]
    if json:
        write_json(chosen)
        return
    rows = (
        (
            one["id"],
            one["name"],
            one["state"],
            " ".join(one["scopes"]),
            one["tier"] or "-",
            clock_text(one["created"]),
            one["created_by"],
            "never" if one["expires"] is None else clock_text(one["expires"]),
        )
        for one in chosen
    )
    show(table(rows, "key", "name", "state", "scopes", "tier", "made", "by", "expires"))


@app.command()
def revoke(
    key: Annotated[str, typer.Argument(metavar="ID", help="As `keys list` shows it, or its name.")],
    *,
    plane: ControlPlane,
) -> None:
    """Make a key void: the gateway refuses it when this returns.

    For example:

        headrace keys revoke shop
    """
    from headrace.cli.access.tokens import id_of

    revoked = plane.connect().delete(f"/api/v1/keys/{id_of(key, ('hr',))}")
    say(f"key {revoked['id']} of {revoked['name']} is void")
