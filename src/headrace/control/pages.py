"""What stands beside the management API on its port? Pages for people, made by a part above.

The control plane knows of them only what it gives them and where they are: it is told by name which
function makes them, since what is above it must not be imported here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Final, TypeAlias, cast

from headrace.control.access.parts import Access
from headrace.control.access.sessions import SessionRules
from headrace.control.guards import App, BodyLimit, Receive, Scope, Send
from headrace.control.plane import ControlPlane

_API: Final = ("/api/", "/auth/", "/v2/")


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleParts:
    """What pages are made of.

    `api`: the management API, which asks everybody who he is. `sessions`: how its cookies are
    called. `has_provider`: whether people log in at an identity provider. `gateway_url`, and
    `gateway_ca`, the file of its certificate: where endpoints are called; empty for plain text.
    `is_stopping`: whether streams have to end.
    """

    api: App
    sessions: SessionRules
    has_provider: bool
    gateway_url: str
    gateway_ca: str
    now: Callable[[], float]
    is_stopping: Callable[[], bool]


MakeConsole: TypeAlias = Callable[[ConsoleParts], App]


def console_of(name: str) -> MakeConsole | None:
    """The function that `MODULE:NAME` names; None for an empty name."""
    if not name:
        return None
    module, _, function = name.partition(":")
    return cast("MakeConsole", getattr(import_module(module), function))


def pages_over(app: App, plane: ControlPlane, access: Access) -> ConsoleParts:
    """The parts for pages over the management API `app`."""
    ca = plane.home.gateway_certificate
    is_encrypted = plane.addresses.http_url.startswith("https:")
    return ConsoleParts(
        api=app,
        sessions=access.authenticator.rules,
        has_provider=access.login is not None,
        gateway_url=plane.addresses.http_url,
        gateway_ca=str(ca) if is_encrypted else "",
        now=plane.clock.now,
        is_stopping=plane.stop_requested.is_set,
    )


@dataclass(slots=True, kw_only=True)
class Beside:
    """Sends requests to the management API, or to the pages, by where they go."""

    api: App
    pages: App

    def __post_init__(self) -> None:
        self.pages = BodyLimit(app=self.pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        is_api = str(scope["path"]).startswith(_API)
        await (self.api if is_api else self.pages)(scope, receive, send)
