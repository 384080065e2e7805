"""Where the console under test is, and what stands on it."""

from dataclasses import dataclass
from typing import Final

from playwright.sync_api import Page

from tests.e2e.control.system import System

PAGES: Final = {
    "fleet": "/",
    "endpoint": "/endpoints/fraud",
    "try": "/endpoints/fraud/try",
    "rollouts": "/rollouts",
    "rollout": "/rollouts/r1",
    "confirm": "/rollouts/r1/rollback",
    "streams": "/streams",
    "stream": "/streams/payments",
    "confirm-stream": "/streams/payments/pause",
    "jobs": "/jobs",
    "job": "/jobs/nightly",
    "models": "/models",
    "model": "/models/fraud",
    "usage": "/usage",
    "alerts": "/alerts",
    "activity": "/activity",
    "logs": "/logs",
    "access": "/access",
    "diagram": "/diagram",
    "start-rollout": "/endpoints/churn/rollout",
    "scale": "/endpoints/churn/scale",
    "pause": "/endpoints/churn/pause",
    "undo": "/endpoints/churn/undo/1",
    "upload": "/upload",
    "serve": "/models/fraud/2/serve",
    "new-key": "/access/keys/new",
    "new-user": "/access/users/new",
    "new-token": "/access/tokens/new",
}
"""Every page that needs somebody who is logged in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running system and its owner's token."""

    url: str
    token: str
    system: System

    def log_in(self, page: Page, token: str = "") -> None:
        page.goto(f"{self.url}/login")
        page.get_by_label("Token", exact=True).fill(token or self.token)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{self.url}/")
