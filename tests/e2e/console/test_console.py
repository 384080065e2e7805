"""People walk through the console in a real browser: every page, both themes, on a phone."""

import re
from typing import Any, Final

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, ViewportSize, expect

from tests.e2e.console.site import PAGES, Site

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MAX_BYTES: Final = 300_000
SERIOUS: Final = {"serious", "critical"}
PHONE: Final = ViewportSize(width=360, height=740)
_WEIGHT: Final = """() => ["navigation", "resource"]
    .flatMap((kind) => performance.getEntriesByType(kind))
    .reduce((sum, one) => sum + one.encodedBodySize, 0)"""
_SEVERAL_POINTS: Final = """() => {
    const band = document.querySelector("#over-time-errors-0-title").parentElement
        .querySelector(".band").getAttribute("d");
    const across = [...band.matchAll(/[ML](-?[\\d.e+]+) /g)].map((found) => found[1]);
    return new Set(across).size > 5;
}"""
_WIDER: Final = "() => document.documentElement.scrollWidth - innerWidth"


def faults_of(page: Page, *rules: str) -> list[str]:
    """What keeps people out, as axe sees it; one line each. `rules`: only these, if there are."""
    options: dict[str, Any] = {"resultTypes": ["violations"]}
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    found = Axe().run(page, options=options).response["violations"]
    return [
        f"{page.url}: {one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
        for one in found
        if one["impact"] in SERIOUS
    ]


@pytest.mark.long
def test_every_page_is_light_live_and_open_to_everybody(page: Page, site: Site) -> None:
    faults, weights, titles = [], {}, set()
    for name, path in PAGES.items():
        page.emulate_media(color_scheme="light")
        page.goto(site.url + path)
        weights[name] = page.evaluate(_WEIGHT)
        titles.add(page.title())
        faults += faults_of(page)
        page.emulate_media(color_scheme="dark")
        faults += faults_of(page, "color-contrast")

    assert faults == []
    assert max(weights.values()) < MAX_BYTES
    assert len(titles) == len(PAGES)


@pytest.mark.long
def test_every_page_fits_a_phone(page: Page, site: Site) -> None:
    page.set_viewport_size(PHONE)
    faults, wider = [], {}
    for name, path in PAGES.items():
        page.goto(site.url + path)
        wider[name] = page.evaluate(_WIDER)
        faults += faults_of(page) if name in {"fleet", "rollout", "stream", "jobs"} else []

    assert {name: pixels for name, pixels in wider.items() if pixels > 0} == {}
    assert faults == []


def test_numbers_change_without_loading_the_page_again(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/fraud")
    page.evaluate("() => { window.loadedOnce = true; }")
    figure = page.locator("[data-live=phases] td").first
    before = figure.inner_text()

    expect(page.get_by_text("Live", exact=True)).to_be_visible()
    expect(figure).not_to_have_text(before, timeout=10_000)
    assert page.evaluate("() => window.loadedOnce")

    page.get_by_role("button", name="Pause updates").click()
    expect(page.get_by_text("Paused", exact=True)).to_be_visible()


@pytest.mark.long
def test_an_endpoint_says_how_busy_it_is_and_what_drifted(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/fraud")
    state, drift = page.locator("[data-live=state]"), page.locator("[data-live=drift]")

    for title in ("Batches", "Queue", "In flight", "Ready over time"):
        expect(page.get_by_role("img", name=re.compile(f"^{title} "))).to_be_visible(timeout=20_000)
    expect(page.get_by_text("rows per batch; mean rows per model run")).to_be_visible()
    expect(state).to_contain_text("Drifted: x[", timeout=30_000)
    expect(drift.get_by_role("row").nth(1)).to_contain_text("drifted")
    expect(drift.get_by_role("img", name="100 % of the required evidence").first).to_be_visible()


@pytest.mark.long
def test_a_stream_is_watched_paused_and_goes_on(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/streams")
    row = page.get_by_role("row").filter(has_text="payments")
    expect(row).to_contain_text("running", timeout=30_000)
    page.get_by_role("link", name="payments").first.click()
    state = page.locator("[data-live=state]")
    for title in ("Lag", "Waiting", "Answered", "Dead letters"):
        expect(page.get_by_role("img", name=re.compile(f"^{title} "))).to_be_visible()
    answered = page.get_by_role("img", name=re.compile("^Answered ")).locator(".line")
    expect(answered).to_have_attribute("d", re.compile("L"), timeout=40_000)  # by the stream
    assert faults_of(page) == []

    page.get_by_role("link", name="Pause", exact=True).click()
    page.get_by_role("link", name="Cancel").click()
    expect(state).to_contain_text("running")
    page.get_by_role("link", name="Pause", exact=True).click()
    page.get_by_role("button", name="Pause", exact=True).click()
    expect(state).to_contain_text("paused", timeout=10_000)
    expect(page.locator("[data-live=events]")).to_contain_text("is paused", timeout=10_000)
    page.get_by_role("link", name="Resume").click()
    page.get_by_role("button", name="Resume").click()
    expect(state).to_contain_text("running", timeout=10_000)

    page.get_by_role("link", name="Activity").click()
    expect(page.get_by_role("region", name="Audit log").last).to_contain_text("stream.resume")


@pytest.mark.long
def test_a_job_shows_how_its_runs_went_and_the_fleet_leads_there(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.get_by_role("link", name="2 jobs").click()
    page.get_by_role("link", name="nightly").first.click()

    runs = page.get_by_role("region", name="Runs").get_by_role("row")
    expect(runs.nth(1)).to_contain_text("succeeded", timeout=60_000)
    expect(runs.nth(1)).to_contain_text("2,000")
    assert faults_of(page) == []


@pytest.mark.long
def test_the_theme_that_was_chosen_stays(page: Page, site: Site) -> None:
    page.emulate_media(color_scheme="light")
    page.goto(site.url)
    light = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")
    page.get_by_role("button", name="Dark theme").click()
    page.goto(f"{site.url}/models")
    dark = page.evaluate("() => getComputedStyle(document.documentElement).backgroundColor")

    assert light != dark
    expect(page.get_by_role("button", name="Light theme")).to_be_visible()


def test_an_endpoint_is_tried_by_its_form(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/churn/try")
    page.get_by_label("Data, as a JSON list").fill("[0.5, 0.1]")
    page.get_by_role("button", name="Send").click()

    answer = page.locator("#answer")
    expect(answer).to_contain_text("HTTP 200")
    expect(answer).to_contain_text('"label"')
    expect(page.get_by_role("region", name="curl command")).to_contain_text("[0.5, 0.1]")

    page.get_by_label("Data, as a JSON list").fill("0.5")
    page.get_by_role("button", name="Send").click()
    expect(page.get_by_role("alert")).to_contain_text("must be a JSON list")


def test_a_keyboard_reaches_everything(page: Page, site: Site) -> None:
    page.goto(site.url)
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()

    page.get_by_label("Search endpoints").focus()
    page.keyboard.type("chu")
    page.keyboard.press("Enter")
    expect(page.get_by_role("row")).to_have_count(2)
    page.get_by_role("link", name="churn").focus()
    page.keyboard.press("Enter")
    expect(page).to_have_url(re.compile("/endpoints/churn"))


def test_who_does_not_know_a_token_sees_nothing(browser: Browser, site: Site) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{site.url}/endpoints/fraud?span=3600")

    expect(page).to_have_url(f"{site.url}/login?next=%2Fendpoints%2Ffraud%3Fspan%3D3600")
    assert faults_of(page) == []
    page.get_by_label("Token", exact=True).fill("hrt_wrong")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("unknown token")

    page.get_by_label("Token", exact=True).fill(site.token)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("button", name="Log out").click()
    expect(page).to_have_url(f"{site.url}/login")
    page.goto(f"{site.url}/models")
    expect(page).to_have_url(re.compile("/login"))
    context.close()


@pytest.mark.long
def test_the_evidence_is_drawn_over_time_and_grows(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/rollouts/r1")
    chart = page.get_by_role("img", name="errors over time")
    expect(chart).to_be_visible()
    page.wait_for_function(_SEVERAL_POINTS, timeout=20_000)
    band = chart.locator(".band")
    before = band.get_attribute("d")

    expect(chart.locator(".neutral")).to_have_count(1)
    expect(chart.locator(".margin")).to_have_count(1)
    expect(chart.locator("desc")).to_have_text(re.compile(r"at first between .* tolerated\."))
    expect(band).not_to_have_attribute("d", str(before), timeout=20_000)  # by the stream
    assert faults_of(page) == []

    page.get_by_text("errors over time as a table").click()
    rows = page.get_by_role("region", name="errors over time as a table").get_by_role("row")
    assert rows.count() > 3


@pytest.mark.long
def test_a_rollout_is_promoted_by_hand_and_not_without_a_word(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/rollouts/r1")
    expect(page.get_by_role("img", name="errors: difference of the new version")).to_be_visible()
    state = page.locator("[data-live=state]")

    page.get_by_role("link", name="Roll back").click()
    page.get_by_role("link", name="Cancel").click()
    expect(state).not_to_contain_text("rolled back")

    page.get_by_role("link", name=re.compile("Promote")).click()
    page.get_by_label("Reason").fill("looks good")
    page.get_by_role("button", name="Promote").click()
    expect(state).to_contain_text("promoted by hand: looks good", timeout=10_000)
    expect(page.locator("[data-live=split]")).to_contain_text("100 %", timeout=10_000)
    expect(page.get_by_role("img", name="errors over time")).to_be_visible()  # when it is over, too

    page.get_by_role("link", name="Activity").click()
    expect(page.get_by_role("region", name="Audit log").last).to_contain_text("rollout.promote")
