"""Views of pages: a template and its values, made for one visitor.

Every request of a page goes to the management API with the visitor's own cookie, so that a page
can do nothing that its visitor could not do.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
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
"""What the API has to see of the browser: who it is, and that it is on a page of this server."""
_NOT_FOUND: Final = 404
_MANY: Final = 400


class RefusedError(HeadraceError):
    """The management API said no; `status` is HTTP's, the message its own."""

    def __init__(self, status: int, problem: ProblemDocument) -> None:
        super().__init__(problem.detail)
        self.status = status
        self.code = Code(problem.code) if problem.code in set(Code) else Code.UNKNOWN

    @classmethod
    def of(cls, status: int, detail: str) -> Self:
        """One that the console itself says."""
        return cls(status, _unnamed(status, detail))


@dataclass(frozen=True, slots=True, kw_only=True)
class Visitor:
    """Asks the management API as the browser that came.

    `is_there`: whether a person asks; else a stream does, which must not keep a session alive.
    """

    api: App
    headers: Mapping[str, str]
    base_url: str
    address: str
    is_there: bool = True

    async def get(self, path: str, into: type[T], params: Params | None = None) -> T:
        """What a route answers.

        Raises:
            RefusedError: It does not.
        """
        answer = await self._ask("GET", path, params=params)
        return msgspec.json.decode(answer.content, type=into, strict=False)

    async def find(self, path: str, into: type[T], params: Params | None = None) -> T | None:
        """What a route answers; None if there is no such thing.

        Raises:
            RefusedError: It refuses for another reason.
        """
        try:
            return await self.get(path, into, params)
        except RefusedError as error:
            if error.status != _NOT_FOUND:
                raise
            return None

    async def post(
        self, path: str, document: Mapping[str, object], *, csrf_token: str = ""
    ) -> httpx.Response:
        """Tell a route to change something.

        Args:
            csrf_token: What the page's form repeated.

        Raises:
            RefusedError: It does not.
        """
        headers = {CSRF_HEADER: csrf_token} if csrf_token else {}
        return await self._ask("POST", path, document=document, headers=headers)

    async def who(self) -> tuple[Caller, str]:
        """Who looks, and the token that his forms repeat.

        Raises:
            RefusedError: Nobody who is known.
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
                method, path, params=params, json=document, headers={**passed, **(headers or {})}
            )
        if answer.status_code >= _MANY:
            raise RefusedError(answer.status_code, _problem(answer))
        return answer


def may_operate(caller: Caller, endpoint: str) -> bool:
    """Whether the visitor may change an endpoint; the API checks it all the same."""
    return caller.may(Role.OPERATOR, endpoint)


def may_operate_system(caller: Caller) -> bool:
    """Whether the visitor may change what is of no endpoint; the API checks it all the same."""
    return caller.may(Role.OPERATOR)


def may_see_system(caller: Caller) -> bool:
    """Whether the visitor is shown what belongs to no endpoint."""
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
    """Where endpoints are called; `ca` is the file of its certificate, empty for plain text."""

    url: str
    ca: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PageRequest:
    """Which page is asked for, by whom: `names` of its path, `query` after it, `now` since 1970."""

    visitor: Visitor
    caller: Caller
    names: Mapping[str, str]
    query: Mapping[str, str]
    now: float
    gateway: GatewayLocation
    csrf: str
    """The token that the page's forms repeat."""
    page_url: str

    @property
    def search(self) -> str:
        """What names have to hold; empty for any."""
        return self.query.get("search", "").strip()[:MOST_TEXT]

    @property
    def page(self) -> int:
        """The page of a long list, from 1 on."""
        return self.number("page", least=1, most=MOST_PAGES, usual=1)

    def matches_search(self, name: str) -> bool:
        """Whether a name is searched for."""
        return self.search.lower() in name.lower()

    def word(self, name: str, *allowed: str) -> str:
        """What the query says of `name` if that is allowed, else the first that is."""
        requested = self.query.get(name, "")
        return requested if requested in allowed else allowed[0]

    def number(self, name: str, *, least: int, most: int, usual: int) -> int:
        """A whole number of the query, brought into bounds."""
        requested = self.query.get(name, "")
        is_number = requested.isascii() and requested.isdigit() and len(requested) <= len(str(most))
        return min(max(int(requested), least), most) if is_number else usual


@dataclass(frozen=True, slots=True, kw_only=True)
class PageView:
    """A page: `say` is what a screen reader hears when it changes; `section` its place in the menu.

    `status` is HTTP's.
    """

    template: str
    title: str
    values: Mapping[str, object]
    section: str = ""
    announcement: str = ""
    status: int = 200


MakeView: TypeAlias = Callable[[PageRequest], Awaitable[PageView]]
MOST_PAGES = 10_000
MOST_TEXT = 100
"""Letters of a search."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where in a long list this page is."""

    page: int
    count: int
    first: int
    last: int
    total: int


def pages_of(total: int, *, page: int, size: int, shown: int) -> Pages:
    """The place of a page with `shown` of `total` rows, where a full one has `size`."""
    first = (page - 1) * size + 1 if shown else 0
    return Pages(
        page=page,
        count=max(-(-total // size), 1),
        first=first,
        last=first + shown - 1 if shown else 0,
        total=total,
    )


def cut(rows: Sequence[T], *, page: int, size: int) -> tuple[Sequence[T], Pages]:
    """One page of all rows, and its place."""
    shown = rows[(page - 1) * size : page * size]
    return shown, pages_of(len(rows), page=page, size=size, shown=len(shown))
