"""Who may pass? Between the socket and every route: known, with the role that the route needs.

Refused before a byte of the body is read. A route that is not in the table of roles is not there.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPMethod
from typing import Final

from headrace.control.access.authenticate import Authenticator
from headrace.control.access.references import ModelFacts, may_change_model, may_read_model
from headrace.control.access.roles import SYSTEM, Caller, ObjectKind, Role
from headrace.control.access.route_roles import Extent, Found, RuleBook
from headrace.control.access.sessions import cookie_value, is_csrf_token
from headrace.control.guards import App, Message, Receive, Scope, Send, headers_of, refuse
from headrace.control.problems import problem_of
from headrace.core import HeadraceError, NotFoundError, PermissionDeniedError, UnsupportedError

CALLER: Final = "headrace.caller"
"""Where in an ASGI scope stands who asks."""
UNATTENDED: Final = "headrace.unattended"
"""Where in an ASGI scope stands that nobody is there: such a request renews no session."""
CSRF_HEADER: Final = "x-csrf-token"
LOOK_AGAIN_S: Final = 5.0
_SAFE: Final = frozenset({HTTPMethod.GET, HTTPMethod.HEAD, HTTPMethod.OPTIONS})
_CHALLENGE: Final = b'Bearer realm="headrace"'
_UNAUTHORIZED: Final = 401
_METHOD_NOT_ALLOWED: Final = 405
_NOT_FOUND: Final = 404


@dataclass(slots=True, kw_only=True)
class Gatekeeper:
    """Lets requests pass to `app` whose caller may make them; the rest it answers.

    `model_facts`: the users and owners of a model; reads files. `look_again_s`: how soon a
    stream ends after its reader has lost the right to it.
    """

    app: App
    authenticator: Authenticator
    model_facts: Callable[[str], ModelFacts]
    rules: RuleBook = field(default_factory=RuleBook)
    look_again_s: float = LOOK_AGAIN_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer it."""
        found = self.rules.find(scope["method"], scope["path"])
        if found is not None and found.rule.is_public:
            await self.app(scope, receive, send)
            return
        try:
            renews = not scope.get(UNATTENDED, False)
            scope[CALLER] = await self._checked(scope, found, renews=renews)
        except HeadraceError as error:
            await _refuse(receive, send, error)
            return
        if scope["method"] in _SAFE:
            await self._while_allowed(scope, receive, send, found)
        else:
            await self.app(scope, receive, send)  # a change is made whole

    async def _while_allowed(
        self, scope: Scope, receive: Receive, send: Send, found: Found | None
    ) -> None:
        """Pass a request on whose answer may last, such as a stream, and end it with the rights."""
        answer = _Answer(send)
        serving = asyncio.ensure_future(self.app(scope, receive, answer.send))
        try:
            while not (await asyncio.wait({serving}, timeout=self.look_again_s))[0]:
                await self._checked(scope, found, renews=False)
            await serving
        except HeadraceError:
            serving.cancel()
            await asyncio.wait({serving})
            await answer.finish()
        finally:
            serving.cancel()

    async def _checked(self, scope: Scope, found: Found | None, *, renews: bool = True) -> Caller:
        headers = headers_of(scope)
        address = scope["client"][0] if scope.get("client") else ""
        caller = await self.authenticator.caller(headers, address, renews=renews)
        if found is None:
            raise self._absent(scope["method"], scope["path"])
        if caller.csrf_token and scope["method"] not in _SAFE:
            self._check_page(headers)
        if not await self._may(caller, found):
            raise PermissionDeniedError(_missing(caller, found))
        return caller

    def _absent(self, method: str, path: str) -> HeadraceError:
        known = self.rules.methods(path)
        if known:
            return UnsupportedError(f"Method Not Allowed: {method} {path}; {', '.join(known)} is")
        return NotFoundError(f"Not Found: {method} {path}")

    def _check_page(self, headers: dict[str, str]) -> None:
        """Refuse a change that a browser makes on somebody else's behalf.

        The guard has refused other origins; here one has to be told at all.
        """
        cookie = cookie_value(headers.get("cookie", ""), self.authenticator.rules.cookie_name)
        is_told = "origin" in headers or headers.get("sec-fetch-site") == "same-origin"
        if not is_told or not is_csrf_token(cookie, headers.get(CSRF_HEADER, "")):
            message = f"with a session's cookie a change needs {CSRF_HEADER} and the same origin"
            raise PermissionDeniedError(message)

    async def _may(self, caller: Caller, found: Found) -> bool:
        role = found.rule.role
        if role is None:
            return True
        match found.rule.extent:
            case Extent.SYSTEM:
                return caller.may(role)
            case Extent.ENDPOINT:
                return caller.may(role, found.name)
            case Extent.OWN:
                return caller.may_somewhere(role)
            case Extent.MODEL:
                facts = await asyncio.to_thread(self.model_facts, found.name)
                rule = may_read_model if role is Role.VIEWER else may_change_model
                return rule(caller, found.name, facts)


@dataclass(slots=True)
class _Answer:
    """An answer on its way, which can be ended before it is whole."""

    to: Send
    _began: bool = False
    _ended: bool = False

    async def send(self, message: Message) -> None:
        """Pass a part on."""
        self._began = True
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._ended = True
        await self.to(message)

    async def finish(self) -> None:
        """End it, if it began."""
        if self._began and not self._ended:
            await self.to({"type": "http.response.body", "body": b"", "more_body": False})


@dataclass(slots=True, kw_only=True)
class FromGateway:
    """Says that whoever asks is the gateway: nobody else can open its socket."""

    app: App

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        scope[CALLER] = SYSTEM
        await self.app(scope, receive, send)


def _missing(caller: Caller, found: Found) -> str:
    """What the caller lacks, and how to get it."""
    role = found.rule.role
    has = ", ".join(map(str, caller.grants)) or "no role"
    of = {Extent.ENDPOINT: f":{found.name}", Extent.MODEL: f":{ObjectKind.MODEL}/{found.name}"}.get(
        found.rule.extent, ""
    )
    return (
        f"{caller.name} has {has}, and this needs {role}{of}; an admin can give it with "
        f"`headrace users grant {caller.name} {role}{of}`"
    )


async def _refuse(receive: Receive, send: Send, error: HeadraceError) -> None:
    status, body = problem_of(error)
    headers = []
    if isinstance(error, UnsupportedError):
        status = _METHOD_NOT_ALLOWED
    if status == _UNAUTHORIZED:
        headers.append((b"www-authenticate", _CHALLENGE))
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(max(round(error.retry_after_s), 1)).encode()))
    await refuse(receive, send, status, body, headers)
