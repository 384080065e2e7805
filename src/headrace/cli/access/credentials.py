"""`headrace users`, `keys` and `tokens`: access to the management API and the gateway."""

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    Home,
    Json,
    argument,
    option,
    span_s,
)
from headrace.cli.base.output import (
    Column,
    clock_column,
    say,
    show_answer,
    show_document,
    write,
    write_json,
)
from headrace.core import FailedPreconditionError
from headrace.core.files import write_atomic

users_app = CommandGroup(
    help="Users and service accounts: add, list, grant, revoke, disable, enable, me.",
)
_ROLE = "viewer, operator or admin, or limited: operator:fraud, viewer:model/forest"
_EXPIRY = "Lifetime such as 90s, 15m, 12h, 30d or 8w, or `never`."
_Out = Annotated[
    Path | None,
    option("Write the secret to this file, readable by its owner only.", shown="print it"),
]


def check_out(out: Path | None) -> None:
    """Check that the secret's file can be written, before the secret is created.

    Raises:
        FailedPreconditionError: It cannot.
    """
    if out is not None and not os.access(out.absolute().parent, os.W_OK):
        raise FailedPreconditionError(f"cannot write {out}: choose a directory that is writable")


_All = Annotated[bool, option("Include expired and revoked entries.", "--all")]
_Name = Annotated[
    str, argument("User name at the identity provider, or name of a service account.", shown=False)
]
_Roles = Annotated[
    list[str],
    argument(
        f"{_ROLE}.",
        metavar="ROLE...",
        shown=False,
    ),
]


@users_app.command("add")
def add_user(
    name: _Name,
    *,
    role: Annotated[list[str] | None, option(f"{_ROLE}; may be given several times.")] = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Add a user who logs in at the identity provider. For programs use `headrace tokens create`.

    For example:

        headrace users add ann@example.com --role viewer --role operator:fraud
    """
    added = plane.connect().post("/api/v1/users", {"name": name, "roles": role or []})
    _show_user(added, json=json)


@users_app.command("list")
def list_users(*, json: Json = False, plane: ControlPlaneOptions) -> None:
    """List users and service accounts with their roles."""
    users = plane.connect().get("/api/v1/users")["users"]
    columns: dict[str, Column] = {
        "name": "name",
        "kind": "kind",
        "roles": lambda user: ", ".join(user["roles"]) or "only through groups",
        "": lambda user: "disabled" if user["disabled"] else "",
        "added": clock_column("created"),
        "by": "created_by",
    }
    show_document(users, users, columns, json=json)


@users_app.command("grant")
def grant(
    name: _Name,
    roles: _Roles,
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Grant roles to a user or service account.

    For example:

        headrace users grant ann@example.com operator:fraud
    """
    _change({"name": name, "grant": roles}, json=json, plane=plane)


@users_app.command("revoke")
def revoke_roles(
    name: _Name,
    roles: _Roles,
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Revoke roles of a user or service account; takes effect immediately.

    For example:

        headrace users revoke ann@example.com admin
    """
    _change({"name": name, "revoke": roles}, json=json, plane=plane)


@users_app.command("disable")
def disable(name: _Name, *, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Disable a user or service account: its sessions and tokens are rejected."""
    _change({"name": name, "disabled": True}, json=json, plane=plane)


@users_app.command("enable")
def enable(name: _Name, *, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Enable a disabled user or service account."""
    _change({"name": name, "disabled": False}, json=json, plane=plane)


@users_app.command("me")
def me(*, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Show the identity and roles that the control plane assigns to this command."""
    identity = plane.connect().get("/api/v1/whoami")
    if json:
        write_json({key: identity[key] for key in ("name", "kind", "roles")})
        return
    write(f"{identity['name']}: {', '.join(identity['roles']) or 'no role'}")


def _change(body: dict[str, object], *, json: bool, plane: ControlPlaneOptions) -> None:
    _show_user(plane.connect().post("/api/v1/users/change", body), json=json)


def _show_user(user: dict[str, Any], *, json: bool) -> None:
    roles = ", ".join(user["roles"]) or "no role"
    line = f"{user['name']}: {roles}{'; disabled' if user['disabled'] else ''}"
    show_answer(user, line, json=json)


def deliver_secret(
    issued: Mapping[str, Any],
    field: str,
    owner: str,
    *,
    out: Path | None,
    json: bool,
    note: str = "",
) -> None:
    """Write a new secret to a file, or print it.

    Args:
        issued: Response of the API.
        field: Field of the secret in `issued`, also displayed as its kind.
        owner: Displayed owner, as in `key ID of shop`.
        out: File readable by its owner only; None prints the secret.
        note: Appended to the message when the secret is printed.
    """
    secret, name = issued[field], f"{field} {issued['id']} of {owner}"
    if out is not None:
        write_atomic(out, f"{secret}\n".encode())
        say(f"{name} is in {out}")
        issued = {**issued, field: ""}
    if json:
        write_json(issued)
    elif out is None:
        say(f"{name}{note}; it is not shown again")
        write(secret)


def id_of(text: str, prefixes: Collection[str]) -> str:
    """Return the id or name in `text`, checked for a path; a whole credential contains its id."""
    parts = text.split("_")
    is_whole = len(parts) > 2 and parts[0] in prefixes  # noqa: PLR2004  # prefix, id, secret
    return quote(parts[1] if is_whole else text, safe="")


_TOKEN_PREFIXES: Final = ("hrt", "hrs")
tokens_app = CommandGroup(help="Tokens of the management API: show, create, list, revoke.")


@tokens_app.command("show")
def show_token(*, home: Home = DEFAULT_HOME) -> None:
    """Print the admin token of a home on this machine, and nothing else.

    The token is created at the first start, in a file that only the home's owner can read. To
    replace it, delete that file and restart the system; the old token is then rejected.

    For example:

        curl -H "authorization: Bearer $(headrace token show)" localhost:8080/api/v1/status
    """
    from headrace.control.auth.home_token import FILE_NAME, read_home_token  # noqa: PLC0415  # only here

    token = read_home_token(home)
    if not token:
        path = home / FILE_NAME
        msg = f"cannot read {path}; `headrace up` creates it, and only the home's owner can read it"
        raise FailedPreconditionError(msg)
    write(token)


@tokens_app.command("create")
def create_token(
    owner: Annotated[str, argument("Service account; created if it does not exist.")],
    *,
    role: Annotated[
        list[str] | None,
        option(
            f"{_ROLE}; roles of a new account. May be repeated.",
            shown="the account's roles",
        ),
    ] = None,
    expires_in: Annotated[str, option(_EXPIRY)] = "90d",
    out: _Out = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Create a token. It is shown once; only its hash is stored.

    For example:

        headrace tokens create ci --role operator:fraud --expires-in 30d

        headrace tokens create prometheus --role viewer --expires-in never --out prometheus.token
    """
    check_out(out)
    body = {
        "owner": owner,
        "roles": role or [],
        "expires_in_s": span_s(expires_in, "--expires-in"),
    }
    issued = plane.connect().post("/api/v1/tokens", body)
    deliver_secret(issued, "token", owner, out=out, json=json)


@tokens_app.command("list")
def list_tokens(
    *,
    sessions: Annotated[
        bool, option("List browser sessions instead of tokens.", "--sessions")
    ] = False,
    everything: _All = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List tokens with owner, creation and expiry. The secrets are not stored."""
    kind = "session" if sessions else "token"
    tokens = plane.connect().get("/api/v1/tokens", kind=kind)["tokens"]
    selected = [entry for entry in tokens if everything or entry["state"] == "valid"]
    columns: dict[str, Column] = {
        kind: "id",
        "owner": "owner",
        "state": "state",
        "made": clock_column("created"),
        "by": "created_by",
        "expires": clock_column("expires", "never"),
    }
    show_document(selected, selected, columns, json=json)


@tokens_app.command("revoke")
def revoke_token(
    token: Annotated[str, argument("Token id from `headrace tokens list`.", metavar="ID")],
    *,
    plane: ControlPlaneOptions,
) -> None:
    """Revoke a token or a session; takes effect immediately.

    For example:

        headrace tokens revoke k7m2p9x4w3ab
    """
    revoked = plane.connect().delete(f"/api/v1/tokens/{id_of(token, _TOKEN_PREFIXES)}")
    say(f"{revoked['kind']} {revoked['id']} of {revoked['owner']} is void")


keys_app = CommandGroup(help="API keys of callers: create, list, revoke.")


@keys_app.command("create")
def create_key(
    name: Annotated[str, argument("Caller name for this key, also used in logs.")],
    *,
    scope: Annotated[
        list[str] | None,
        option(
            "Allowed endpoint: infer:ENDPOINT, or one version as in infer:fraud:2. May be "
            "repeated.",
            shown="infer:*, all endpoints",
        ),
    ] = None,
    tier: Annotated[str, option("Rate limit tier defined in the spec.")] = "",
    expires_in: Annotated[str, option(_EXPIRY, "--expires-in", "--expires")] = "90d",
    out: _Out = None,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Create an API key. It is shown once; only its hash is stored.

    The gateway accepts the key when this command returns.

    For example:

        headrace keys create shop --scope infer:fraud --expires-in 30d

        curl -H "x-api-key: $KEY" http://127.0.0.1:8000/v2/models/fraud/infer -d @row.json
    """
    check_out(out)
    body = {
        "name": name,
        "tier": tier,
        "expires_in_s": span_s(expires_in, "--expires-in"),
        **({"scopes": scope} if scope else {}),
    }
    issued = plane.connect().post("/api/v1/keys", body)
    more = f" for {', '.join(issued['scopes'])}"
    deliver_secret(issued, "key", name, out=out, json=json, note=more)


@keys_app.command("list")
def list_keys(
    *,
    everything: _All = False,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """List API keys with name, scopes and expiry. The secrets are not stored."""
    keys = plane.connect().get("/api/v1/keys")["keys"]
    selected = [entry for entry in keys if everything or entry["state"] == "valid"]
    columns: dict[str, Column] = {
        "key": "id",
        "name": "name",
        "state": "state",
        "scopes": "scopes",
        "tier": "tier",
        "made": clock_column("created"),
        "by": "created_by",
        "expires": clock_column("expires", "never"),
    }
    show_document(selected, selected, columns, json=json)


@keys_app.command("revoke")
def revoke_key(
    key: Annotated[
        str, argument("Key id from `headrace keys list`, or the key's name.", metavar="ID")
    ],
    *,
    plane: ControlPlaneOptions,
) -> None:
    """Revoke an API key. The gateway rejects it when this command returns.

    For example:

        headrace keys revoke shop
    """
    revoked = plane.connect().delete(f"/api/v1/keys/{id_of(key, ('hr',))}")
    say(f"key {revoked['id']} of {revoked['name']} is void")
