"""Views of pages: a template and its values, for one visitor.

Every request of a page goes to the management API with the visitor's own cookie, so a page can do
nothing that its visitor could not do.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Self, TypeAlias, TypeVar

import httpx
import msgspec

from headrace.control.api.access import WhoView
from headrace.control.asgi.guards import App, ProblemDocument, Receive, Scope, Send
from headrace.control.auth.gatekeeper import CSRF_HEADER, UNATTENDED
from headrace.control.auth.roles import Caller, Role, parse_grants
from headrace.core import Code, HeadraceError
from headrace.core.error_kind import UNDECODABLE

T = TypeVar("T")
Params = Mapping[str, str | int | float]
_PASSED_ON: Final = ("cookie", "host", "origin", "sec-fetch-site", "user-agent")
"""Browser headers that the API needs: the session, and the page's origin."""
_FORBIDDEN: Final = 403
_NOT_FOUND: Final = 404
_MANY: Final = 400


class RefusedError(HeadraceError):
    """Error response of the management API with its HTTP status."""

    def __init__(self, status: int, problem: ProblemDocument) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.code = Code(problem.code) if problem.code in set(Code) else Code.UNKNOWN

    @classmethod
    def of(cls, status: int, detail: str) -> Self:
        """Return an error of the console itself."""
        return cls(status, _unnamed(status, detail))


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Client of the management API with the credentials of the visitor's browser."""

    api: App
    headers: Mapping[str, str]
    base_url: str
    address: str
    is_there: bool = True
    """Whether the visitor is active; False for live streams, which do not extend a session."""

    async def get(self, path: str, into: type[T], params: Params | None = None) -> T:
        """Return the response of a GET route.

        Raises:
            RefusedError: The API returns an error.
        """
        answer = await self._ask("GET", path, params=params)
        return msgspec.json.decode(answer.content, type=into, strict=False)

    async def find(self, path: str, into: type[T], params: Params | None = None) -> T | None:
        """Return the response of a GET route; None for 404.

        Raises:
            RefusedError: The API returns another error.
        """
        try:
            return await self.get(path, into, params)
        except RefusedError as error:
            if error.status != _NOT_FOUND:
                raise
            return None

    async def post(
        self,
        path: str,
        document: Mapping[str, object],
        *,
        csrf_token: str = "",
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a change.

        Args:
            csrf_token: Token from the page's form.
            method: The route's method.
            headers: Further headers.

        Raises:
            RefusedError: The API returns an error.
        """
        token = {CSRF_HEADER: csrf_token} if csrf_token else {}
        return await self._ask(
            method, path, document=document, headers={**token, **(headers or {})}
        )

    async def upload(
        self, path: str, params: Params, content: AsyncIterator[bytes], *, csrf_token: str
    ) -> httpx.Response:
        """Stream a file to a POST route.

        Raises:
            RefusedError: The API returns an error.
        """
        headers = {CSRF_HEADER: csrf_token, "content-type": "application/octet-stream"}
        return await self._ask("POST", path, params=params, content=content, headers=headers)

    async def text(self, path: str, params: Params) -> str:
        """Return the text of a GET route.

        Raises:
            RefusedError: The API returns an error.
        """
        return (await self._ask("GET", path, params=params)).text

    async def who(self) -> tuple[Caller, str]:
        """Return the visitor's identity, and the CSRF token for forms.

        Raises:
            RefusedError: The visitor is not authenticated.
        """
        identity = await self.get("/api/v1/whoami", WhoView)
        caller = Caller(name=identity.name, kind=identity.kind, grants=parse_grants(identity.roles))
        return caller, identity.csrf_token

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        document: Mapping[str, object] | None = None,
        content: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        async def unattended(scope: Scope, receive: Receive, send: Send) -> None:
            scope[UNATTENDED] = True
            await self.api(scope, receive, send)

        app = self.api if self.is_there else unattended
        transport = httpx.ASGITransport(
            app=app,
            client=(self.address, 0),
            raise_app_exceptions=False,
        )
        passed = {name: self.headers[name] for name in _PASSED_ON if name in self.headers}
        async with httpx.AsyncClient(
            transport=transport, base_url=self.base_url, trust_env=False
        ) as client:
            answer = await client.request(
                method,
                path,
                params=params,
                json=document,
                content=content,
                headers={**passed, **(headers or {})},
            )
        if answer.status_code >= _MANY:
            raise RefusedError(answer.status_code, _problem(answer))
        return answer


def may_operate(caller: Caller, endpoint: str) -> bool:
    """Whether the visitor may change an endpoint; the API checks this as well."""
    return caller.may(Role.OPERATOR, endpoint)


def may_operate_system(caller: Caller) -> bool:
    """Whether the visitor may change system-wide objects; the API checks this as well."""
    return caller.may(Role.OPERATOR)


def may_see_system(caller: Caller) -> bool:
    """Whether the visitor may see objects that belong to no endpoint."""
    return caller.may(Role.VIEWER)


def _problem(answer: httpx.Response) -> ProblemDocument:
    try:
        return msgspec.json.decode(answer.content, type=ProblemDocument)
    except UNDECODABLE:
        detail = f"the management API answers with status {answer.status_code}"
        return _unnamed(answer.status_code, detail)


def _unnamed(status: int, detail: str) -> ProblemDocument:
    return ProblemDocument(
        type="about:blank", title="", status=status, code=Code.UNKNOWN, detail=detail
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLocation:
    """Address of endpoints; `ca` is the file of its certificate, empty for plain text."""

    url: str
    ca: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Request of a visitor for a page."""

    visitor: Visitor
    """Client of the management API with the visitor's cookie."""
    caller: Caller
    """Identity of the visitor."""
    names: Mapping[str, str]
    """Values from the path."""
    query: Mapping[str, str]
    """Values from the query string."""
    now: float
    """Seconds since 1970."""
    gateway: GatewayLocation
    """Address of the gateway."""
    csrf: str
    """CSRF token for the page's forms."""
    page_url: str
    """Path and query of the page."""
    form: Mapping[str, str] = field(default_factory=dict)
    """Fields of the sent form; empty if the page is only shown."""
    problem: str = ""
    """Why the sent form was refused; empty if it was not."""

    def require_operator(self, endpoint: str) -> None:
        """Raise RefusedError unless the visitor may change an endpoint."""
        if not may_operate(self.caller, endpoint):
            detail = f"{self.caller.name} needs operator:{endpoint} for this page"
            raise RefusedError.of(_FORBIDDEN, detail)

    async def change(
        self,
        path: str,
        document: Mapping[str, object],
        *,
        method: str = "POST",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Send a change with the form's token.

        Raises:
            RefusedError: The API returns an error.
        """
        token = self.form.get("csrf_token", "")
        return await self.visitor.post(
            path, document, csrf_token=token, method=method, headers=headers
        )

    @property
    def search(self) -> str:
        """Return the search text; empty for all."""
        return self.query.get("search", "").strip()[:MAX_TEXT]

    @property
    def page(self) -> int:
        """Return the page number of a long list, from 1."""
        return self.number("page", minimum=1, maximum=MAX_PAGES, usual=1)

    def matches_search(self, name: str) -> bool:
        """Whether a name contains the search text."""
        return self.search.lower() in name.lower()

    def word(self, name: str, *allowed: str) -> str:
        """Return the query's value of `name` if it is allowed, else the first allowed value."""
        requested = self.query.get(name, "")
        return requested if requested in allowed else allowed[0]

    def number(self, name: str, *, minimum: int, maximum: int, usual: int) -> int:
        """Return an integer of the query, clamped to the bounds."""
        requested = self.query.get(name, "")
        is_number = (
            requested.isascii() and requested.isdigit() and len(requested) <= len(str(maximum))
        )
        return min(max(int(requested), minimum), maximum) if is_number else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """Template, values and metadata of one page."""

    template: str
    """File name of the template."""
    title: str
    """Title of the page."""
    values: Mapping[str, object]
    """Values of the template."""
    section: str = ""
    """Key of the menu entry."""
    announcement: str = ""
    """Text that screen readers announce when the page changes."""
    status: int = 200
    """HTTP status."""


MakeView: TypeAlias = Callable[[PageRequest], Awaitable[PageView]]
SendForm: TypeAlias = Callable[[PageRequest], Awaitable[str | PageView]]
"""Sends a form to the API; returns the path of the next page, or the page itself."""
MAX_PAGES = 10_000
MAX_TEXT = 100
"""Maximum length of a search text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Position of a page in a long list."""

    page: int
    count: int
    first: int
    last: int
    total: int


def pages_of(total: int, *, page: int, size: int, shown: int) -> Pages:
    """Return the position of a page with `shown` of `total` rows; a full page has `size`."""
    first = (page - 1) * size + 1 if shown else 0
    return Pages(
        page=page,
        count=max(-(-total // size), 1),
        first=first,
        last=first + shown - 1 if shown else 0,
        total=total,
    )


def cut(rows: Sequence[T], *, page: int, size: int) -> tuple[Sequence[T], Pages]:
    """Return one page of all rows, and its position."""
    shown = rows[(page - 1) * size : page * size]
    return shown, pages_of(len(rows), page=page, size=size, shown=len(shown))
