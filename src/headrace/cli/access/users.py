"""`headrace users`: users, service accounts and their roles."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from typing import Annotated

import typer

from headrace.cli.options import CommandGroup, ControlPlane, Json
from headrace.cli.output import say, show, table, write, write_json

app = CommandGroup(
    help="Users and service accounts: add, list, grant, revoke, disable, enable, me.",
)
_Name = Annotated[
    str,
    typer.Argument(
        help="As the identity provider calls the person; or a program.", show_default=False
    ),
]
_Roles = Annotated[
    list[str],
    typer.Argument(
        metavar="ROLE...",
        help="viewer, operator or admin, or limited: operator:fraud, viewer:model/forest.",
        show_default=False,
    ),
]


@app.command()
def add(
    name: _Name,
    *,
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="viewer, operator or admin, or limited: operator:fraud, viewer:model/forest; may "
            "be given several times.",
        ),
    ] = None,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Let a person in, who logs in at the identity provider. Programs get in by `tokens create`.

    For example:

        headrace users add ann@example.com --role viewer --role operator:fraud
    """
    added = plane.connect().post("/api/v1/users", {"name": name, "roles": role or []})
    _told(added, json=json)


@app.command("list")
def list_(*, json: Json = False, plane: ControlPlane) -> None:
    """List users and service accounts with their roles."""
    from headrace.cli.rollout.view import clock_text

    found = plane.connect().get("/api/v1/users")["users"]
    if json:
        write_json(found)
        return
    rows = (
        (
            one["name"],
            one["kind"],
            ", ".join(one["roles"]) or "by groups only",
            "disabled" if one["disabled"] else "",
            clock_text(one["created"]),
            one["created_by"],
        )
        for one in found
    )
    show(table(rows, "name", "kind", "roles", "", "added", "by"))


@app.command()
def grant(
    name: _Name,
    roles: _Roles,
    *,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Give somebody roles.

    For example:

        headrace users grant ann@example.com operator:fraud
    """
    _change({"name": name, "grant": roles}, json=json, plane=plane)


@app.command()
def revoke(
    name: _Name,
    roles: _Roles,
    *,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Take roles from somebody; in force at once.

    For example:

        headrace users revoke ann@example.com admin
    """
    _change({"name": name, "revoke": roles}, json=json, plane=plane)


@app.command()
def disable(name: _Name, *, json: Json = False, plane: ControlPlane) -> None:
    """Keep somebody out: all sessions and tokens are void while it lasts."""
    _change({"name": name, "disabled": True}, json=json, plane=plane)


@app.command()
def enable(name: _Name, *, json: Json = False, plane: ControlPlane) -> None:
    """Let somebody in again."""
    _change({"name": name, "disabled": False}, json=json, plane=plane)


@app.command()
def me(*, json: Json = False, plane: ControlPlane) -> None:
    """Say as whom the control plane knows this command."""
    found = plane.connect().get("/api/v1/whoami")
    if json:
        write_json({key: found[key] for key in ("name", "kind", "roles")})
        return
    write(f"{found['name']}: {', '.join(found['roles']) or 'no role'}")


def _change(body: dict[str, object], *, json: bool, plane: ControlPlane) -> None:
    _told(plane.connect().post("/api/v1/users/change", body), json=json)


def _told(user: dict[str, object], *, json: bool) -> None:
    if json:
        write_json(user)
        return
    given = user["roles"]
    roles = ", ".join(map(str, given)) if isinstance(given, list) and given else "no role"
    say(f"{user['name']}: {roles}{'; disabled' if user['disabled'] else ''}")
