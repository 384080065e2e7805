"""Every action of the console in a real browser, its line in the audit log, and its role."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.console.site import Site
from tests.e2e.console.test_console import PHONE, faults_of
from tests.e2e.rollouts.model_files import write_version

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

VIEWER_PAGES: Final = ("/", "/endpoints/churn", "/rollouts/r1", "/models", "/models/fraud")
ACTIONS: Final = re.compile(
    "^(Start a rollout|Scale|Pause|Undo .*|Upload a model|Serve .*|Promote|Roll back|Abort|"
    "Create a .*|Add a user|Revoke.*|Change.*)$"
)


@pytest.fixture
def narrow(browser: Browser, site: Site) -> Iterator[Page]:
    """A page without scripts, on a phone."""
    context = browser.new_context(viewport=PHONE, java_script_enabled=False)
    opened = context.new_page()
    site.log_in(opened)
    yield opened
    context.close()


def confirm(page: Page, button: str) -> None:
    """Check the confirmation page and press its button."""
    assert faults_of(page) == []
    page.get_by_role("button", name=button, exact=True).click()


def audited(page: Page, site: Site, *actions: str) -> None:
    """Check that these actions of the user are the newest in the audit log, newest first."""
    page.goto(f"{site.url}/activity")
    rows = page.get_by_role("region", name="Audit log").get_by_role("row").filter(has_text="admin")
    for number, action in enumerate(actions):
        expect(rows.nth(number)).to_contain_text(action)


def test_an_endpoint_is_scaled_and_undone_with_a_difference(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/churn")
    page.get_by_role("link", name="Scale", exact=True).click()
    page.get_by_role("link", name="Cancel").click()
    page.get_by_role("link", name="Scale", exact=True).click()
    page.get_by_label("Replicas").fill("2")
    confirm(page, "Scale")
    replicas = page.locator("[data-live=replicas]")
    expect(replicas.get_by_text("churn-1-", exact=False)).to_have_count(2, timeout=30_000)

    page.get_by_role("link", name=re.compile("^Undo to ")).last.click()
    expect(page.get_by_text("-replicas: 2")).to_be_visible()
    confirm(page, "Undo")
    expect(page.get_by_role("cell", name="undone to generation 1")).to_be_visible()
    expect(replicas.get_by_text("churn-1-", exact=False)).to_have_count(1, timeout=30_000)
    audited(page, site, "endpoint.undo", "endpoint.scale")


def test_a_paused_endpoint_refuses_requests_until_it_is_resumed(page: Page, site: Site) -> None:
    url = f"{site.system.where().http_url}/v2/models/churn/infer"
    body = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [0.5, 0.1]}]}
    page.goto(f"{site.url}/endpoints/churn")
    page.get_by_role("link", name="Pause", exact=True).click()
    confirm(page, "Pause")
    expect(page.locator("[data-live=state]")).to_contain_text("paused")
    expect(page.get_by_role("link", name="Resume", exact=True)).to_be_visible()
    with page.expect_response(f"{site.url}/static/**"):  # a page that is alive
        page.goto(f"{site.url}/")
    expect(page.get_by_role("row").filter(has_text="churn")).to_contain_text("paused")

    refused = page.request.post(url, data=body)
    for _ in range(50):
        if refused.status == 503:
            break
        page.wait_for_timeout(100)
        refused = page.request.post(url, data=body)
    assert refused.status == 503
    assert refused.headers["retry-after"] == "30"
    assert "is paused" in refused.text()

    page.goto(f"{site.url}/endpoints/churn")
    page.get_by_role("link", name="Resume", exact=True).click()
    confirm(page, "Resume")
    expect(page.locator("[data-live=state]")).to_contain_text("ready", timeout=10_000)
    answered = page.request.post(url, data=body)
    for _ in range(50):
        if answered.ok:
            break
        page.wait_for_timeout(100)
        answered = page.request.post(url, data=body)
    assert answered.ok
    audited(page, site, "endpoint.resume", "endpoint.pause")


def test_a_rollout_is_previewed_simulated_started_and_aborted(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/endpoints/churn")
    page.get_by_role("link", name="Start a rollout").click()
    page.get_by_label("New version").fill("fraud:2")
    page.get_by_label("Strategy").select_option("canary")
    page.get_by_label("Canary: steps, in percent").fill("10, 50")
    page.get_by_role("button", name="Preview").click()
    preview = page.locator("#preview")
    expect(preview).to_contain_text("10 % until verdict")
    expect(preview).to_contain_text("Verdict on a good version")
    assert faults_of(page) == []

    page.get_by_role("button", name="Simulate").click()
    simulation = page.get_by_role("region", name="Simulation")
    expect(simulation).to_contain_text("as good as the old version", timeout=120_000)
    assert faults_of(page) == []
    expect(page.get_by_label("Canary: steps, in percent")).to_have_value("10, 50")
    page.get_by_role("button", name="Start rollout").click()
    expect(page).to_have_url(re.compile(r"/rollouts/r\d+$"))
    rollout = page.url
    expect(page.locator("[data-live=state]")).to_contain_text("running for")

    for verb in ("Pause", "Resume", "Abort"):
        page.goto(rollout)
        page.get_by_role("link", name=verb, exact=True).click(timeout=30_000)
        confirm(page, verb)
        expect(page).to_have_url(rollout)
    expect(page.locator("[data-live=state]")).to_contain_text(re.compile("took .* ended"))
    audited(page, site, "rollout.abort", "rollout.resume", "rollout.pause", "rollout.start")


def test_old_and_new_version_have_the_same_colour_on_every_page(page: Page, site: Site) -> None:
    colours = []
    for path in ("/rollouts/r1", "/endpoints/fraud"):
        page.goto(site.url + path)
        keys = page.locator(".split .keys li")
        colours.append(
            {
                str(key.inner_text()).partition(":")[2 if "old" in path else 0]: key.locator(
                    "rect"
                ).get_attribute("class")
                for key in keys.all()
            }
        )
    fills = [list(of_page.values()) for of_page in colours]

    assert fills[0] == ["fill-1", "fill-2"]
    assert fills[1] == fills[0]


def test_a_model_is_uploaded_and_served(page: Page, site: Site, tmp_path: Path) -> None:
    file = write_version(tmp_path / "third" / "model.py")
    page.goto(f"{site.url}/models")
    page.get_by_role("link", name="Upload a model").click()
    page.get_by_label("Name of the model").fill("uploaded")
    page.get_by_label("Allow the model").check()
    page.get_by_label("File").set_input_files(str(file))
    confirm(page, "Upload")

    expect(page.get_by_role("heading", name="Serve uploaded:1?")).to_be_visible(timeout=60_000)
    page.get_by_label("Name of the new endpoint").fill("fresh")
    page.get_by_label("Allow the model").check()
    confirm(page, "Serve")
    state = page.locator("[data-live=state]")
    expect(state).to_contain_text("ready", timeout=60_000)
    expect(state).not_to_contain_text("not ready", timeout=60_000)
    audited(page, site, "endpoint.put", "model.push")


def test_a_key_is_shown_once_and_revoked_without_scripts(narrow: Page, site: Site) -> None:
    narrow.goto(f"{site.url}/access")
    narrow.get_by_role("link", name="Create a key").click()
    narrow.get_by_label("Name of the caller").fill("shop")
    narrow.get_by_label("Endpoints").fill("infer:churn")
    narrow.get_by_role("button", name="Create").click()
    secret = narrow.locator("pre").inner_text()
    assert re.fullmatch(r"hr_[a-z0-9]+_[\w-]{43}", secret)

    narrow.get_by_role("link", name="Done").click()
    assert secret not in narrow.content()
    narrow.get_by_role("link", name="Revoke the key of shop").click()
    narrow.get_by_role("button", name="Revoke").click()
    row = narrow.get_by_role("row").filter(has_text="shop")
    expect(row).to_contain_text("revoked")
    audited(narrow, site, "key.revoke", "key.create")


def test_users_and_tokens_are_managed(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/access")
    page.get_by_role("link", name="Add a user").click()
    page.get_by_label("Name", exact=True).fill("ann@example.com")
    page.get_by_label("Roles").fill("operator:fraud")
    confirm(page, "Add")
    page.get_by_role("link", name="Change ann@example.com").click()
    page.get_by_label("Roles").fill("viewer")
    page.get_by_label("Disabled").check()
    confirm(page, "Save")
    row = page.get_by_role("row").filter(has_text="ann@example.com")
    expect(row).to_contain_text("disabled")
    expect(row).to_contain_text("viewer")

    page.get_by_role("link", name="Create a token").click()
    page.get_by_label("Service account").fill("ci")
    page.get_by_label("Roles").fill("viewer")
    confirm(page, "Create")
    expect(page.locator("pre")).to_contain_text("hrt_")
    assert faults_of(page) == []
    page.get_by_role("link", name="Done").click()
    tokens = page.get_by_role("region", name="Tokens").get_by_role("row")
    tokens.filter(has_text="ci").get_by_role("link").click()
    confirm(page, "Revoke")
    expect(tokens.filter(has_text="ci")).to_contain_text("revoked")
    audited(page, site, "token.revoke", "token.create", "user.add", "user.change", "user.add")


def test_logs_are_filtered_and_live(page: Page, site: Site) -> None:
    page.goto(f"{site.url}/logs")
    page.get_by_label("Process").select_option("access")
    page.get_by_label("Text").fill("/infer")
    page.get_by_role("button", name="Show").click()
    rows = page.get_by_role("region", name="Log lines").get_by_role("row")
    expect(rows.nth(1)).to_contain_text("endpoint=fraud")
    first = rows.nth(1).inner_text()
    expect(rows.nth(1)).not_to_have_text(first, timeout=20_000)  # by the stream
    expect(page.get_by_label("Process")).to_have_value("access")

    page.get_by_label("Level").select_option("error")
    page.get_by_label("Text").fill("no such text")
    page.get_by_role("button", name="Show").click()
    expect(page.get_by_text("No matching lines")).to_be_visible()


def test_the_overview_draws_all_endpoints_together(page: Page, site: Site) -> None:
    page.goto(site.url)
    overview = page.locator("[data-live=overview]")
    for title in ("Requests", "Errors", "Latency, p99"):
        chart = overview.get_by_role("img", name=re.compile(f"^{title} "))
        expect(chart).to_be_visible(timeout=20_000)
    line = overview.get_by_role("img", name=re.compile("^Requests ")).locator(".line")
    expect(line).to_have_attribute("d", re.compile("L"), timeout=60_000)


def test_the_menu_of_a_phone_leads_to_every_page(page: Page, site: Site) -> None:
    page.set_viewport_size(PHONE)
    page.goto(site.url)
    expect(page.get_by_role("link", name="Activity")).to_be_hidden()
    page.get_by_text("Menu: Fleet").click()
    assert faults_of(page) == []
    page.get_by_role("link", name="Activity").click()
    expect(page).to_have_url(f"{site.url}/activity")
    expect(page.get_by_text("Menu: Activity")).to_be_visible()


def test_a_viewer_has_no_button_and_no_effect(browser: Browser, site: Site) -> None:
    status, made = site.system.post("/api/v1/tokens", {"owner": "eve", "roles": ["viewer"]})
    assert status == 201
    context = browser.new_context()
    page = context.new_page()
    site.log_in(page, made["token"])
    for path in VIEWER_PAGES:
        page.goto(site.url + path)
        expect(page.get_by_role("link", name=ACTIONS)).to_have_count(0)
    refused = {}
    for path in (
        "/endpoints/churn/scale",
        "/endpoints/churn/pause",
        "/endpoints/churn/undo/1",
        "/endpoints/churn/rollout",
        "/models/fraud/1/serve",
        "/upload",
        "/access/keys/new",
        "/access/users/new",
        "/access/tokens/new",
    ):
        answer = page.goto(site.url + path)
        assert answer is not None
        refused[path] = answer.status
        expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    context.close()

    assert set(refused.values()) == {403}
