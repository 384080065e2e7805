"""Gatekeeper: authorization of requests to the management API by the role that each route needs."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPMethod
from typing import Final

from starlette.routing import compile_path

from headrace.control.asgi.guards import (
    App,
    Message,
    Receive,
    Scope,
    Send,
    headers_of,
    problem_of,
    refuse,
)
from headrace.control.auth.authenticate import Authenticator
from headrace.control.auth.credentials import cookie_value, is_csrf_token
from headrace.control.auth.references import ModelFacts, may_change_model, may_read_model
from headrace.control.auth.roles import SYSTEM, Caller, ObjectKind, Role
from headrace.core import (
    HeadraceError,
    NotFoundError,
    PermissionDeniedError,
    UnsupportedError,
)


class Extent(Enum):
    """Object that a route's role must cover."""

    SYSTEM = auto()
    """The whole system."""
    ENDPOINT = auto()
    """The endpoint that the path names as `{name}`."""
    MODEL = auto()
    """The model that the path names as `{name}`."""
    OWN = auto()
    """Any object: the route shows and changes only objects for which the caller has the role."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Requirement of a route. `role` None: any authenticated caller."""

    role: Role | None
    extent: Extent = Extent.OWN
    is_public: bool = False
    """Whether the route needs no authentication."""


_PUBLIC: Final = Rule(None, is_public=True)
_KNOWN: Final = Rule(None)
_VIEW_SYSTEM: Final = Rule(Role.VIEWER, Extent.SYSTEM)
_VIEW_OWN: Final = Rule(Role.VIEWER, Extent.OWN)
_VIEW_ENDPOINT: Final = Rule(Role.VIEWER, Extent.ENDPOINT)
_VIEW_MODEL: Final = Rule(Role.VIEWER, Extent.MODEL)
_OPERATE_SYSTEM: Final = Rule(Role.OPERATOR, Extent.SYSTEM)
_OPERATE_OWN: Final = Rule(Role.OPERATOR, Extent.OWN)
_OPERATE_ENDPOINT: Final = Rule(Role.OPERATOR, Extent.ENDPOINT)
_OPERATE_MODEL: Final = Rule(Role.OPERATOR, Extent.MODEL)
_ADMIN: Final = Rule(Role.ADMIN, Extent.SYSTEM)
RULES: Final[Mapping[tuple[str, str], Rule]] = {
    ("GET", "/api/v1/health"): _PUBLIC,
    ("GET", "/auth/login"): _PUBLIC,
    ("GET", "/auth/callback"): _PUBLIC,
    ("POST", "/auth/token"): _PUBLIC,
    ("POST", "/auth/logout"): _KNOWN,
    ("GET", "/api/v1/whoami"): _KNOWN,
    # The whole system.
    ("GET", "/api/v1/openapi.json"): _VIEW_OWN,
    ("GET", "/api/v1/schema"): _VIEW_OWN,
    ("GET", "/api/v1/status"): _VIEW_OWN,
    ("GET", "/api/v1/spec"): _VIEW_OWN,
    ("POST", "/api/v1/apply"): _OPERATE_OWN,
    ("POST", "/api/v1/diff"): _OPERATE_OWN,
    ("POST", "/api/v1/stop"): _ADMIN,
    ("GET", "/api/v1/logs"): _VIEW_OWN,
    ("GET", "/api/v1/logs/sources"): _VIEW_OWN,
    ("GET", "/metrics"): _VIEW_SYSTEM,
    # Endpoints and rollouts.
    ("GET", "/api/v1/endpoints"): _VIEW_OWN,
    ("GET", "/api/v1/endpoints/{name}"): _VIEW_ENDPOINT,
    ("PUT", "/api/v1/endpoints/{name}"): _OPERATE_ENDPOINT,
    ("PATCH", "/api/v1/endpoints/{name}"): _OPERATE_ENDPOINT,
    ("DELETE", "/api/v1/endpoints/{name}"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/history"): _VIEW_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/history/{generation}"): _VIEW_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/undo"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/scale"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/pause"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/resume"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/rollout"): _VIEW_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/rollout"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/rollout/preview"): _OPERATE_ENDPOINT,
    ("POST", "/api/v1/endpoints/{name}/rollout/{verb}"): _OPERATE_ENDPOINT,
    # Request payloads are for the endpoint's operators, not for every viewer.
    ("GET", "/api/v1/endpoints/{name}/payloads"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/payloads/rows"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/endpoints/{name}/drift"): _VIEW_ENDPOINT,
    ("PUT", "/api/v1/endpoints/{name}/drift/reference"): _OPERATE_ENDPOINT,
    ("DELETE", "/api/v1/endpoints/{name}/drift/reference"): _OPERATE_ENDPOINT,
    ("GET", "/api/v1/rollouts"): _VIEW_OWN,
    ("GET", "/api/v1/rollouts/{rollout_id}"): _VIEW_OWN,
    ("GET", "/api/v1/rollouts/{rollout_id}/evidence"): _VIEW_OWN,
    # Events and rewards.
    ("GET", "/api/v1/events"): _VIEW_OWN,
    ("GET", "/api/v1/watch"): _VIEW_OWN,
    ("GET", "/api/v1/alerts"): _VIEW_OWN,
    ("POST", "/api/v1/alerts/test"): _OPERATE_SYSTEM,
    ("GET", "/api/v1/silences"): _VIEW_OWN,
    ("POST", "/api/v1/silences"): _OPERATE_OWN,
    ("DELETE", "/api/v1/silences/{silence}"): _OPERATE_OWN,
    ("POST", "/api/v1/feedback"): _OPERATE_OWN,
    # History of the last day.
    ("GET", "/api/v1/history"): _VIEW_OWN,
    ("GET", "/api/v1/overview"): _VIEW_OWN,
    ("GET", "/api/v1/usage"): _VIEW_SYSTEM,
    # Models.
    ("GET", "/api/v1/models"): _VIEW_OWN,
    ("GET", "/api/v1/models/{name}"): _VIEW_MODEL,
    ("POST", "/api/v1/models/{name}"): _OPERATE_MODEL,
    ("GET", "/api/v1/models/{name}/versions/{version}"): _VIEW_MODEL,
    ("DELETE", "/api/v1/models/{name}/versions/{version}"): _OPERATE_MODEL,
    ("POST", "/api/v1/models/{name}/versions/{version}/signatures"): _OPERATE_MODEL,
    ("PUT", "/api/v1/models/{name}/versions/{version}/reference"): _OPERATE_MODEL,
    ("POST", "/api/v1/gc"): _OPERATE_SYSTEM,
    # Features, which belong to no endpoint.
    ("GET", "/api/v1/features"): _VIEW_SYSTEM,
    # Jobs, which read and write files with the control plane's rights.
    ("GET", "/api/v1/jobs"): _VIEW_SYSTEM,
    ("GET", "/api/v1/jobs/{name}/runs"): _VIEW_SYSTEM,
    ("GET", "/api/v1/jobs/{name}/runs/{run_id}"): _VIEW_SYSTEM,
    ("POST", "/api/v1/jobs/{name}/run"): _OPERATE_SYSTEM,
    ("POST", "/api/v1/jobs/{name}/cancel"): _OPERATE_SYSTEM,
    # Streams, which belong to no endpoint.
    ("GET", "/api/v1/streams"): _VIEW_SYSTEM,
    ("GET", "/api/v1/streams/{stream}"): _VIEW_SYSTEM,
    ("GET", "/api/v1/streams/{stream}/history"): _VIEW_SYSTEM,
    ("POST", "/api/v1/streams/{stream}/pause"): _OPERATE_SYSTEM,
    ("POST", "/api/v1/streams/{stream}/resume"): _OPERATE_SYSTEM,
    # API keys.
    ("GET", "/api/v1/keys"): _VIEW_OWN,
    ("POST", "/api/v1/keys"): _OPERATE_OWN,
    ("DELETE", "/api/v1/keys/{key}"): _OPERATE_OWN,
    # Routes of Triton's clients.
    ("GET", "/v2/models/stats"): _VIEW_OWN,
    ("GET", "/v2/models/{name}/stats"): _VIEW_ENDPOINT,
    ("GET", "/v2/models/{name}/versions/{version}/stats"): _VIEW_ENDPOINT,
    ("POST", "/v2/repository/index"): _VIEW_OWN,
    ("POST", "/v2/repository/models/{name}/load"): _OPERATE_ENDPOINT,
    ("POST", "/v2/repository/models/{name}/unload"): _OPERATE_ENDPOINT,
    # Access.
    ("GET", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users"): _ADMIN,
    ("POST", "/api/v1/users/change"): _ADMIN,
    ("GET", "/api/v1/tokens"): _ADMIN,
    ("POST", "/api/v1/tokens"): _ADMIN,
    ("DELETE", "/api/v1/tokens/{token_id}"): _ADMIN,
    ("GET", "/api/v1/trail"): _ADMIN,
    ("GET", "/api/v1/trail/head"): _ADMIN,
}


def required_role_text(rule: Rule) -> str:
    """Return a rule's requirement as text for the OpenAPI document; empty for none."""
    if rule.role is None:
        return "" if rule.is_public else "any"
    match rule.extent:
        case Extent.SYSTEM:
            return rule.role
        case Extent.ENDPOINT:
            return f"{rule.role} of the endpoint"
        case Extent.MODEL:
            return f"{rule.role} of the model"
        case Extent.OWN:
            return f"{rule.role}, also of some endpoints only"


@dataclass(frozen=True, slots=True)
class RuleMatch:
    """The rule for a request, and the `{name}` of its path."""

    rule: Rule
    name: str = ""


class RuleBook:
    """Finds rules by method and path, with the web framework's matching."""

    def __init__(self, rules: Mapping[tuple[str, str], Rule] = RULES) -> None:
        # The framework takes the first route that matches. Here a path without parameters wins, and
        # routes are added in that order too (a test requests the rule of every route).
        ordered = sorted(rules.items(), key=lambda item: item[0][1].count("{"))
        self._rules = [(method, compile_path(path)[0], rule) for (method, path), rule in ordered]

    def find(self, method: str, path: str) -> RuleMatch | None:
        """Return the rule of a request; None if no route matches."""
        for rule_method, pattern, rule in self._rules:
            match = pattern.fullmatch(path) if rule_method == method else None
            if match is not None:
                return RuleMatch(rule, match.groupdict().get("name", ""))
        return None

    def methods(self, path: str) -> list[str]:
        """Return the methods of a path."""
        return sorted({method for method, pattern, _ in self._rules if pattern.fullmatch(path)})


CALLER: Final = "headrace.caller"
"""Key of the caller in an ASGI scope."""
UNATTENDED: Final = "headrace.unattended"
"""Key in an ASGI scope for automatic requests, which do not renew a session."""
CSRF_HEADER: Final = "x-csrf-token"
RECHECK_INTERVAL_S: Final = 5.0
_SAFE: Final = frozenset({HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.OPTIONS})
_CHALLENGE: Final = b'Bearer realm="headrace"'
_UNAUTHORIZED: Final = 401
_METHOD_NOT_ALLOWED: Final = 405
_NOT_FOUND: Final = 404


@dataclass(slots=True, kw_only=True)
class Gatekeeper:
    """Passes authorized requests to `app`, and refuses all others."""

    app: App
    authenticator: Authenticator
    model_facts: Callable[[str], ModelFacts]
    """Returns the users and owners of a model; reads files. `look_again_s`: how soon a stream ends
    after its reader has lost the right to it.
    """
    rules: RuleBook = field(default_factory=RuleBook)
    recheck_interval_s: float = RECHECK_INTERVAL_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        rule_match = self.rules.find(scope["method"], scope["path"])
        if rule_match is not None and rule_match.rule.is_public:
            await self.app(scope, receive, send)
            return
        try:
            renews = not scope.get(UNATTENDED, False)
            scope[CALLER] = await self._checked(scope, rule_match, renews=renews)
        except HeadraceError as error:
            status, body = problem_of(error)
            headers = []
            if isinstance(error, UnsupportedError):
                status = _METHOD_NOT_ALLOWED
            if status == _UNAUTHORIZED:
                headers.append((b"www-authenticate", _CHALLENGE))
            if error.retry_after_s is not None:
                headers.append((b"retry-after", str(max(round(error.retry_after_s), 1)).encode()))
            await refuse(receive, send, status, body, headers)
            return
        if scope["method"] in _SAFE:
            await self._while_allowed(scope, receive, send, rule_match)
        else:
            await self.app(scope, receive, send)  # a change is never cancelled

    async def _while_allowed(
        self, scope: Scope, receive: Receive, send: Send, rule_match: RuleMatch | None
    ) -> None:
        """Pass on a request with a long response, such as a stream; end it when the rights end."""
        answer = _Answer(send)
        serving = asyncio.ensure_future(self.app(scope, receive, answer.send))
        try:
            while not (await asyncio.wait({serving}, timeout=self.recheck_interval_s))[0]:
                await self._checked(scope, rule_match, renews=False)
            await serving
        except HeadraceError:
            serving.cancel()
            await asyncio.wait({serving})
            await answer.finish()
        finally:
            serving.cancel()

    async def _checked(
        self, scope: Scope, rule_match: RuleMatch | None, *, renews: bool = True
    ) -> Caller:
        headers = headers_of(scope)
        address = scope["client"][0] if scope.get("client") else ""
        caller = await self.authenticator.caller(headers, address, renews=renews)
        if rule_match is None:
            method, path = scope["method"], scope["path"]
            if allowed := self.rules.methods(path):
                message = f"Method Not Allowed: {method} {path}; {', '.join(allowed)} is"
                raise UnsupportedError(message)
            raise NotFoundError(f"Not Found: {method} {path}")
        if caller.csrf_token and scope["method"] not in _SAFE:
            # Refuse a change that a browser sends on behalf of another site. The guard has refused
            # other origins; here the request needs a CSRF token.
            cookie = cookie_value(headers.get("cookie", ""), self.authenticator.rules.cookie_name)
            is_notified = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
            if not is_notified or not is_csrf_token(cookie, headers.get(CSRF_HEADER, "")):
                message = (
                    f"with a session's cookie a change needs {CSRF_HEADER} and the same origin"
                )
                raise PermissionDeniedError(message)
        if not await self._may(caller, rule_match):
            raise PermissionDeniedError(_missing(caller, rule_match))
        return caller

    async def _may(self, caller: Caller, rule_match: RuleMatch) -> bool:
        role = rule_match.rule.role
        if role is None:
            return True
        match rule_match.rule.extent:
            case Extent.SYSTEM:
                return caller.may(role)
            case Extent.ENDPOINT:
                return caller.may(role, rule_match.name)
            case Extent.OWN:
                return caller.may_somewhere(role)
            case Extent.MODEL:
                facts = await asyncio.to_thread(self.model_facts, rule_match.name)
                rule = may_read_model if role is Role.VIEWER else may_change_model
                return rule(caller, rule_match.name, facts)


@dataclass(slots=True)
class _Answer:
    """A response that can be ended early."""

    to: Send
    _began: bool = False
    _ended: bool = False

    async def send(self, message: Message) -> None:
        """Send a part of the response."""
        self._began = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True
        await self.to(message)

    async def finish(self) -> None:
        """End the response if it has begun."""
        if self._began and not self._ended:
            await self.to({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(slots=True, kw_only=True)
class FromGateway:
    """Marks the caller as the gateway, the only process that can open its socket."""

    app: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        scope[CALLER] = SYSTEM
        await self.app(scope, receive, send)


def _missing(caller: Caller, rule_match: RuleMatch) -> str:
    """Return which role the caller lacks, and how to get it."""
    role = rule_match.rule.role
    has = ", ".join(map(str, caller.grants)) or "no role"
    of = {
        Extent.ENDPOINT: f":{rule_match.name}",
        Extent.MODEL: f":{ObjectKind.MODEL}/{rule_match.name}",
    }.get(rule_match.rule.extent, "")
    return (
        f"{caller.name} has {has}, but this needs {role}{of}; an admin can grant it with "
        f"`headrace users grant {caller.name} {role}{of}`"
    )
