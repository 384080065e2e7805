"""The playground of a language model and the page of used tokens, in a real browser."""

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.e2e.console.conftest import CONSOLE
from tests.e2e.console.site import Site
from tests.e2e.console.test_console import _WIDER, PHONE, faults_of
from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import MODEL, Stub, running_stub
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

HTML: Final = '<img src=x onerror="window.attacked = true"><b>bold</b> '


@pytest.fixture(scope="module")
def stub() -> Iterator[Stub]:
    port = free_port()
    with running_stub(str(port), MODEL):
        yield Stub(port)


@pytest.fixture(scope="module")
def site(stub: Stub) -> Iterator[Site]:
    """Two versions of `chat` and one of `closed`, which needs a key, all on a stub."""
    url = f"http://127.0.0.1:{stub.port}"
    upstream = {"url": url, "protocol": "openai", "model": MODEL, "health_path": None}
    versions = [
        {"upstream": upstream, "version": "1", "weight": 90},
        {"upstream": upstream, "version": "2", "weight": 10},
    ]
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            system.start(
                {"name": "chat", "versions": versions},
                {"name": "closed", "upstream": upstream, "access": ["key"]},
                console=CONSOLE,
            )
            system.wait_ready()
            yield Site(url=system.where().admin_url, token=system.token(), system=system)
        finally:
            system.close()


def say(page: Page, message: str = "", **told: Any) -> None:
    page.get_by_label("Message").fill(message or json.dumps(told))
    page.get_by_role("button", name="Send").click()


def figure(panel: Locator, name: str) -> Locator:
    return panel.locator(f"[data-figure={name}]")


def test_answers_of_two_versions_come_as_they_are_generated(
    page: Page, site: Site, stub: Stub
) -> None:
    page.goto(f"{site.url}/endpoints/chat")
    page.get_by_role("link", name="Chat", exact=True).click()
    first, second = page.locator("#chat-0"), page.locator("#chat-1")
    expect(second).to_be_hidden()
    page.get_by_label("Version").select_option("1")
    page.get_by_label("Compare with").select_option("2")
    expect(second.get_by_role("heading")).to_have_text("Version 2")

    say(page, tokens=30, pause_s=0.1, text=HTML)
    expect(figure(first, "first")).to_contain_text("s")
    expect(page.get_by_role("button", name="Send")).to_be_disabled()
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=20_000)

    for panel in (first, second):
        answer = panel.locator(".message.assistant p")
        expect(answer).to_contain_text(f"0{HTML}1{HTML}")
        assert answer.locator("*").count() == 0
        expect(figure(panel, "output")).to_have_text("30")
        assert 2 < float(figure(panel, "rate").inner_text()) < 11
        assert int(figure(panel, "input").inner_text()) > 5
    assert not page.evaluate("() => window.attacked")
    assert faults_of(page) == []

    say(page, "and now?")
    expect(first.locator(".message.assistant p").last).to_contain_text('4 "usage": {')
    sent = stub.seen()[-1]["body"]
    roles = [message["role"] for message in sent["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert (sent["stream"], sent["max_tokens"]) == (True, 256)
    assert "temperature" not in sent
    page.get_by_label("Maximum tokens").fill("")
    page.get_by_label("Temperature").fill("0.5")
    say(page, "once more", pause_s=0)
    expect(first.locator(".message.assistant")).to_have_count(3)
    expect(page.get_by_role("button", name="Send")).to_be_enabled(timeout=20_000)
    sent = stub.seen()[-1]["body"]
    assert ("max_tokens" in sent, sent["temperature"]) == (False, 0.5)


def test_a_stopped_answer_ends_the_generation(page: Page, site: Site, stub: Stub) -> None:
    page.goto(f"{site.url}/endpoints/chat/chat")
    panel = page.locator("#chat-0")
    say(page, tokens=2000, pause_s=0.05)
    expect(panel.locator(".message.assistant p")).to_contain_text("3")
    page.get_by_role("button", name="Stop").click()

    expect(panel.get_by_role("alert")).to_have_text("Stopped.")
    for _ in range(100):
        if stub.seen()[-1]["left"]:
            break
        page.wait_for_timeout(50)
    assert stub.seen()[-1]["left"]
    say(page, tokens=2000, pause_s=0.05)
    expect(panel.locator(".message.assistant p").last).to_contain_text("3")
    page.get_by_role("button", name="New chat").click()
    expect(panel.locator(".message")).to_have_count(0)
    expect(page.get_by_role("button", name="Send")).to_be_enabled()
    say(page, "Hello!")
    expect(panel.locator(".message.assistant p")).to_contain_text('4 "usage": {')
    assert [message["content"] for message in stub.seen()[-1]["body"]["messages"]] == ["Hello!"]
    expect(panel.get_by_role("alert")).to_be_hidden()


def test_an_endpoint_with_a_key_says_what_is_missing(page: Page, site: Site) -> None:
    _, made = site.system.post("/api/v1/keys", {"name": "alice", "scopes": ["infer:closed"]})
    page.goto(f"{site.url}/endpoints/closed/chat")
    page.get_by_label("API key").fill(made["key"])
    say(page, "Hello")
    expect(page.locator("#chat-0 .message.assistant p")).to_contain_text('4 "usage": {')


@pytest.mark.parametrize("name", ["playground", "usage"])
def test_the_pages_fit_a_phone(page: Page, site: Site, name: str) -> None:
    page.set_viewport_size(PHONE)
    page.goto(site.url + {"playground": "/endpoints/chat/chat", "usage": "/usage"}[name])

    assert page.evaluate(_WIDER) <= 0
    assert faults_of(page) == []
    page.emulate_media(color_scheme="dark")
    assert faults_of(page, "color-contrast") == []


def test_used_tokens_have_a_cost_and_charts(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/chat/chat")
    say(page, tokens=40)
    expect(figure(page.locator("#chat-0"), "output")).to_have_text("40")

    page.goto(f"{site.url}/usage")
    models = page.get_by_role("region", name="Tokens by model")
    expect(models.get_by_role("row").filter(has_text="chat")).to_have_count(1)
    page.get_by_label("Price of output tokens of chat, per million").fill("10000")
    page.get_by_role("button", name="Compute the cost").click()
    row = models.get_by_role("row").filter(has_text="chat")
    output = int(row.get_by_role("cell").nth(2).inner_text().replace(",", ""))
    assert output >= 40
    expect(row.get_by_role("cell").last).to_have_text(f"{output / 100:,.2f}")
    assert faults_of(page) == []
    with page.expect_download() as download:
        page.get_by_role("link", name="CSV").click()
    assert download.value.path().read_text().startswith("day,endpoint,version,credential,input")

    page.goto(f"{site.url}/endpoints/chat?span=900")
    for title in ("First token", "Tokens"):
        chart = page.get_by_role("img", name=f"{title} ", exact=False).first
        expect(chart).to_be_visible(timeout=30_000)
