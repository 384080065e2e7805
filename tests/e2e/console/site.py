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
    "alerts": "/alerts",
    "activity": "/activity",
    "diagram": "/diagram",
}
"""Every page that needs somebody who is logged in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A running system and its owner's token."""

    url: str
    token: str
    system: System

    def log_in(self, page: Page) -> None:
        page.goto(f"{self.url}/login")
        page.get_by_label("Token", exact=True).fill(self.token)
        page.get_by_role("button", name="Log in").click()
        page.wait_for_url(f"{self.url}/")
