"""Page of API keys, users and tokens, and their actions."""

from typing import Final, TypeVar

from headrace.console.forms import FormInput, checked_number, confirmation
from headrace.console.view import PageRequest, PageView, RefusedError
from headrace.control.api.access import TokenList, UserList
from headrace.control.api.keys import KeyList
from headrace.control.auth.roles import Role

T = TypeVar("T")
_BAD_REQUEST: Final = 400
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_DAY_S: Final = 86_400
_CRUMBS: Final = [("/access", "Access")]
_KINDS: Final = {"user": "a person who logs in", "service": "a program with tokens"}
_ROLES_HELP: Final = (
    "Separated by commas: `viewer`, `operator`, `admin`, or for one object `operator:fraud`, "
    "`viewer:model/fraud`."
)
_STYLES: Final = {"valid": "ok", "expired": "idle", "revoked": "idle"}


async def access(request: PageRequest) -> PageView:
    """Return the page of keys, and for admins of users and tokens."""
    is_admin = request.caller.may(Role.ADMIN)
    ask = request.visitor
    keys = await ask.get("/api/v1/keys", KeyList)
    users = await ask.get("/api/v1/users", UserList) if is_admin else UserList(users=[])
    tokens = await ask.get("/api/v1/tokens", TokenList) if is_admin else TokenList(tokens=[])
    valid = sum(key.state == "valid" for key in keys.keys)
    return PageView(
        template="access.html",
        title="Access",
        section="access",
        announcement=f"{valid} valid API keys.",
        values={
            "keys": keys.keys[::-1],
            "users": users.users,
            "tokens": tokens.tokens[::-1],
            "is_admin": is_admin,
            "may_create": _may_create_keys(request),
            "looks": _STYLES,
        },
    )


async def new_key(request: PageRequest) -> PageView:
    """Return the form for an API key."""
    if not _may_create_keys(request):
        raise _forbidden(request, "operator")
    form, own = request.form, request.caller.endpoints(Role.OPERATOR)
    scopes = "infer:*" if own is None else ", ".join(f"infer:{name}" for name in sorted(own))
    return confirmation(
        request,
        title="Create an API key",
        consequence="The key is shown once, on the next page.",
        label="Create",
        crumbs=_CRUMBS,
        section="access",
        inputs=[
            FormInput(
                name="name",
                label="Name of the caller",
                value=form.get("name", ""),
                help="Logs name callers by it.",
                is_required=True,
            ),
            FormInput(
                name="scopes",
                label="Endpoints",
                value=form.get("scopes", scopes),
                help="Separated by commas: `infer:ENDPOINT`, `infer:ENDPOINT:VERSION`, or "
                "`infer:*` for all.",
                is_required=True,
            ),
            FormInput(name="tier", label="Tier (optional)", value=form.get("tier", "")),
            _days(request),
        ],
    )


async def create_key(request: PageRequest) -> PageView:
    """Create the key and return the page that shows it."""
    form = request.form
    document: dict[str, object] = {
        "name": form.get("name", "").strip(),
        "scopes": _listed(form.get("scopes", "")),
        "tier": form.get("tier", "").strip(),
        "expires_in_s": _lifetime_s(request),
    }
    created = (await request.change("/api/v1/keys", document)).json()
    return _secret("API key", created["name"], created["key"], created["expires"])


async def revoke_key(request: PageRequest) -> PageView:
    """Return the page that asks whether to revoke a key."""
    id_ = request.names["id"]
    keys = await request.visitor.get("/api/v1/keys", KeyList)
    key = _one([key for key in keys.keys if key.id == id_], f"key {id_}")
    names = [scope.split(":")[1] for scope in key.scopes]
    endpoints = [None if name == "*" else name for name in names]
    if not all(request.caller.may(Role.OPERATOR, endpoint) for endpoint in endpoints):
        raise _forbidden(request, f"operator of {', '.join(key.scopes)}")
    return confirmation(
        request,
        title=f"Revoke the key of {key.name}?",
        consequence=f"Callers with key {id_} ({', '.join(key.scopes)}) are refused from now on. "
        "A revoked key cannot be restored.",
        label="Revoke",
        crumbs=_CRUMBS,
        section="access",
        look="danger",
    )


async def send_revoke_key(request: PageRequest) -> str:
    """Revoke the key."""
    await request.change(f"/api/v1/keys/{request.names['id']}", {}, method="DELETE")
    return "/access"


async def new_user(request: PageRequest) -> PageView:
    """Return the form for a user or a service account."""
    _require_admin(request)
    form = request.form
    return confirmation(
        request,
        title="Add a user",
        consequence="People log in at the identity provider under their name there. A program "
        "logs in with a token.",
        label="Add",
        crumbs=_CRUMBS,
        section="access",
        inputs=[
            FormInput(name="name", label="Name", value=form.get("name", ""), is_required=True),
            FormInput(
                name="kind",
                label="Kind",
                kind="select",
                value=form.get("kind", "user"),
                choices=_KINDS,
            ),
            _roles(form.get("roles", "viewer")),
        ],
    )


async def add_user(request: PageRequest) -> str:
    """Add the user."""
    form = request.form
    document: dict[str, object] = {
        "name": form.get("name", "").strip(),
        "kind": form.get("kind", "user"),
        "roles": _listed(form.get("roles", "")),
    }
    await request.change("/api/v1/users", document)
    return "/access"


async def edit_user(request: PageRequest) -> PageView:
    """Return the form for a user's roles."""
    _require_admin(request)
    name = request.query.get("name", "")
    users = await request.visitor.get("/api/v1/users", UserList)
    user = _one([user for user in users.users if user.name == name], f"user {name!r}")
    disabled = request.form.get("disabled", "") if request.form else "1" * user.disabled
    return confirmation(
        request,
        title=f"Change {name}?",
        consequence="The roles below replace the present ones at once. A disabled user's sessions "
        "and tokens are refused.",
        label="Save",
        crumbs=_CRUMBS,
        section="access",
        inputs=[
            _roles(request.form.get("roles", ", ".join(user.roles))),
            FormInput(name="disabled", label="Disabled", kind="checkbox", value=disabled),
        ],
    )


async def change_user(request: PageRequest) -> str:
    """Change the roles of a user to those of the form."""
    name = request.query.get("name", "")
    users = await request.visitor.get("/api/v1/users", UserList)
    user = _one([user for user in users.users if user.name == name], f"user {name!r}")
    roles = _listed(request.form.get("roles", ""))
    document: dict[str, object] = {
        "name": name,
        "grant": [role for role in roles if role not in user.roles],
        "revoke": [role for role in user.roles if role not in roles],
        "disabled": bool(request.form.get("disabled")),
    }
    await request.change("/api/v1/users/change", document)
    return "/access"


async def new_token(request: PageRequest) -> PageView:
    """Return the form for a token of a service account."""
    _require_admin(request)
    form = request.form
    return confirmation(
        request,
        title="Create a token",
        consequence="The token is shown once, on the next page. Programs use it for the management "
        "API.",
        label="Create",
        crumbs=_CRUMBS,
        section="access",
        inputs=[
            FormInput(
                name="owner",
                label="Service account",
                value=form.get("owner", request.query.get("owner", "")),
                help="A new account is created with the roles below.",
                is_required=True,
            ),
            _roles(form.get("roles", "")),
            _days(request),
        ],
    )


async def create_token(request: PageRequest) -> PageView:
    """Create the token and return the page that shows it."""
    form = request.form
    document: dict[str, object] = {
        "owner": form.get("owner", "").strip(),
        "roles": _listed(form.get("roles", "")),
        "expires_in_s": _lifetime_s(request),
    }
    created = (await request.change("/api/v1/tokens", document)).json()
    return _secret("Token", created["owner"], created["token"], created["expires"])


async def revoke_token(request: PageRequest) -> PageView:
    """Return the page that asks whether to revoke a token."""
    _require_admin(request)
    id_ = request.names["id"]
    tokens = await request.visitor.get("/api/v1/tokens", TokenList)
    token = _one([token for token in tokens.tokens if token.id == id_], f"token {id_}")
    return confirmation(
        request,
        title=f"Revoke token {id_}?",
        consequence=f"Requests of {token.owner} with this token are refused from now on, and "
        "sessions that began with it end.",
        label="Revoke",
        crumbs=_CRUMBS,
        section="access",
        look="danger",
    )


async def send_revoke_token(request: PageRequest) -> str:
    """Revoke the token."""
    await request.change(f"/api/v1/tokens/{request.names['id']}", {}, method="DELETE")
    return "/access"


def _secret(kind: str, name: str, secret: str, expires: float | None) -> PageView:
    return PageView(
        template="secret.html",
        title=f"{kind} of {name}",
        section="access",
        values={"kind": kind, "name": name, "secret": secret, "expires": expires},
    )


def _days(request: PageRequest) -> FormInput:
    return FormInput(
        name="days",
        label="Valid for, in days",
        kind="number",
        value=request.form.get("days", "90"),
        least=1,
        most=3660,
        help="Empty: without an end.",
    )


def _lifetime_s(request: PageRequest) -> int | None:
    text = request.form.get("days", "").strip()
    days = checked_number(text)
    if text and not days:
        raise RefusedError.of(_BAD_REQUEST, "the number of days must be an integer above 0")
    return None if days is None else days * _DAY_S


def _roles(value: str) -> FormInput:
    return FormInput(name="roles", label="Roles", value=value, help=_ROLES_HELP)


def _listed(text: str) -> list[str]:
    return [part for part in (piece.strip() for piece in text.split(",")) if part]


def _one(matches: list[T], what: str) -> T:
    if not matches:
        raise RefusedError.of(_NOT_FOUND, f"{what} does not exist, or you may not see it")
    return matches[0]


def _may_create_keys(request: PageRequest) -> bool:
    own = request.caller.endpoints(Role.OPERATOR)
    return own is None or bool(own)


def _require_admin(request: PageRequest) -> None:
    if not request.caller.may(Role.ADMIN):
        raise _forbidden(request, "admin")


def _forbidden(request: PageRequest, role: str) -> Exception:
    return RefusedError.of(_FORBIDDEN, f"{request.caller.name} needs {role} for this page")
