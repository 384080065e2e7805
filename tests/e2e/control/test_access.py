"""A running system lets in whoever shows who it is, and remembers what that one did."""

import contextlib
import http.client
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from headrace.cli.access.audit_log import verified
from headrace.cli.base.management import Management
from headrace.control.auth.credentials import hash_of
from headrace.control.auth.gatekeeper import RULES
from headrace.control.base.settings import OidcSettings
from headrace.control.model.audit_log import Broken, Head
from tests.e2e.control.system import System
from tests.ports import free_port
from tests.processes import command_line

pytestmark = pytest.mark.e2e
PLANTED = "pl4nted-s3cret-value"
HEADRACE = Path(sys.executable).parent / "headrace"


def management(system: System, token: str = "") -> Management:
    return Management(system.where().admin_url, token=token or system.token())


def restart(system: System) -> None:
    assert system.end_control() == 0
    system.start()
    system.wait_ready()


@pytest.mark.long
def test_a_lost_token_is_replaced_by_the_next_start(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()
    lost = system.token()
    unknown = system.call("GET", f"{system.where().admin_url}/api/v1/status")
    path = Path(system.where().token_file)
    mode = path.stat().st_mode & 0o777
    path.unlink()
    restart(system)
    url = f"{system.where().admin_url}/api/v1/status"
    old, new = (system.call("GET", url, token=token)[0] for token in (lost, system.token()))

    assert unknown[0] == 401
    assert mode == 0o600
    assert system.token() != lost
    assert (old, new) == (401, 200)
    stored = b"".join(path.read_bytes() for path in system.home.glob("state.db*"))
    assert hash_of(system.token()).encode() in stored
    assert system.token().encode() not in stored


@pytest.mark.long
def test_the_trail_tells_who_did_what_and_whether_it_was_spoiled(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()
    api = management(system)
    made = api.post("/api/v1/tokens", {"owner": "ci", "roles": ["operator:m"]})
    ci = management(system, made["token"])
    ci.get("/api/v1/endpoints/m")
    system.call(
        "PUT",
        f"{system.where().admin_url}/api/v1/endpoints/m",
        {"model": str(mlp), "timeout_s": 3},
        token=made["token"],
    )
    whole = verified(api, [])
    entries = api.get("/api/v1/trail")["entries"]
    _wait_for_checkpoint(system, len(entries))
    assert system.end_control() == 0
    with contextlib.closing(sqlite3.connect(system.home / "state.db")) as database, database:
        database.execute("DELETE FROM trail WHERE id = ?", (len(entries),))
        database.execute("UPDATE counters SET value = value - 1 WHERE name = 'trail'")
    system.start()
    system.wait_ready()
    cut = verified(management(system), [])
    _wait_for_log(system, "the audit trail was changed")
    assert system.end_control() == 0
    with contextlib.closing(sqlite3.connect(system.home / "state.db")) as database, database:
        database.execute("UPDATE trail SET actor = 'somebody' WHERE id = 2")
    system.start()
    system.wait_ready()
    spoiled = verified(management(system), [])

    assert [(entry["actor"], entry["action"]) for entry in entries] == [
        *(("admin", "user.add"), ("admin", "token.create"), ("admin", "apply")),
        *(("admin", "user.add"), ("admin", "token.create"), ("ci", "endpoint.put")),
    ]
    assert whole == (Head(count=6, hash=entries[-1]["hash"]), None)
    assert cut[1] == Broken(id=6, reason="it was there, and the trail ends before it")
    assert spoiled[1] == Broken(id=2, reason="its content is not what was written")


def _wait_for_checkpoint(system: System, count: int) -> None:
    deadline = time.monotonic() + 20
    while f'"count":{count}' not in (system.home / "trail-checkpoint.json").read_text():
        assert time.monotonic() < deadline, system.log_text()
        time.sleep(0.1)


def _wait_for_log(system: System, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in system.log_text():
        assert time.monotonic() < deadline, system.log_text()
        time.sleep(0.1)


@pytest.mark.long
def test_metrics_are_open_on_loopback_and_closed_beyond(system: System, mlp: Path) -> None:
    everywhere = {"admin_host": "0.0.0.0", "insecure_admin": True}  # noqa: S104  # meant
    system.start({"name": "m", "model": str(mlp)}, **everywhere)
    system.wait_ready()
    url = system.where().metrics_url
    closed, _ = system.call("GET", url)
    viewer = management(system).post("/api/v1/tokens", {"owner": "prom", "roles": ["viewer"]})
    opened, text = system.call("GET", url, token=viewer["token"])

    assert (closed, opened) == (401, 200)
    assert "headrace_control_gateway_ready 1" in text


# Secrets.


def test_a_secret_by_reference_is_found_nowhere(
    system: System, mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = system.home.parent / "secret"
    secret.write_text(f"{PLANTED}\n")
    monkeypatch.setenv("PLANTED_STATE", f"sqlite:///{system.home.parent}/state-{PLANTED[:7]}.db")
    oidc = OidcSettings(
        issuer="http://127.0.0.1:1",
        client_id="headrace",
        client_secret=f"file:{secret}",
        redirect_url="http://127.0.0.1/auth/callback",
    )
    entry = {"name": "m", "model": str(mlp)}
    system.start(entry, oidc=oidc, state_url="${PLANTED_STATE}", copy_logs=True, log_level="DEBUG")
    system.wait_ready()
    admin = system.where().admin_url
    answers = [
        system.call("GET", admin + path, token=system.token())
        for path in ("/api/v1/status", "/api/v1/spec", "/api/v1/trail", "/api/v1/logs?tail=9999")
    ]
    answers.append(system.call("GET", f"{admin}/auth/login"))
    lines = [" ".join(command_line(process)) for process in system.processes()]
    token = system.token()

    assert answers[-1][0] == 503
    assert not [line for line in lines if PLANTED in line or token in line]
    assert PLANTED not in str(answers) + system.log_text()
    assert token not in str(answers) + system.log_text()
    for path in system.home.parent.rglob("*"):
        if path.is_file() and path != secret:
            assert PLANTED.encode() not in path.read_bytes(), path
            if path.name != "admin-token":
                assert token.encode() not in path.read_bytes(), path


@pytest.mark.long
@pytest.mark.parametrize(
    ("state_url", "reason"),
    [
        ("${HEADRACE_TEST_NOTHING}", "the environment has no variable HEADRACE_TEST_NOTHING"),
        ("file:/nowhere/url", "cannot read the secret in /nowhere/url"),
        (f"postgresql://ann:{PLANTED}@127.0.0.1:1/x", "postgresql://ann@127.0.0.1:1/x"),
    ],
)
def test_a_state_that_cannot_be_opened_is_told_without_its_password(
    system: System, mlp: Path, state_url: str, reason: str
) -> None:
    system.start({"name": "m", "model": str(mlp)}, state_url=state_url)
    assert system.process is not None

    assert system.process.wait(30) == 1
    assert reason in system.log_text()
    assert PLANTED not in system.log_text()


@pytest.mark.long
def test_a_started_system_s_settings_are_its_owner_s_only(system: System, mlp: Path) -> None:
    environment = {**os.environ, "PLANTED": PLANTED, "HEADRACE_HOME": str(system.home)}
    state = f"sqlite:///{system.home.parent}/${{PLANTED}}.db"
    ports = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0")
    arguments = ("up", "-d", mlp, *ports, "--state-url", state)
    done = subprocess.run(
        [HEADRACE, *arguments], env=environment, capture_output=True, text=True, check=True
    )
    settings = system.home / "run" / "control-settings.json"
    text = settings.read_text()
    mode = settings.stat().st_mode & 0o777
    subprocess.run([HEADRACE, "down"], env=environment, check=True, capture_output=True)

    assert mode == 0o600
    assert "${PLANTED}" in text
    assert PLANTED not in text + done.stdout + done.stderr
    assert (system.home.parent / f"{PLANTED}.db").exists()


# Logging in, at a real OpenID provider.


@dataclass
class Mock:
    """`oidc-provider-mock` in a process of its own."""

    port: int

    @property
    def issuer(self) -> str:
        return f"http://localhost:{self.port}"

    def set_user(self, sub: str, **claims: object) -> None:
        httpx.put(f"{self.issuer}/users/{sub}", json=claims).raise_for_status()


@pytest.fixture(scope="module")
def mock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mock]:
    port = free_port()
    log = tmp_path_factory.mktemp("mock") / "log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "oidc_provider_mock", "--port", str(port)],
            stdout=file,
            stderr=file,
        )
    found = Mock(port)
    try:
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{found.issuer}/.well-known/openid-configuration").raise_for_status()
                break
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(10)


@pytest.fixture
def known(system: System, mock: Mock, mlp: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    """A system where people log in at the mock."""
    port = free_port()
    monkeypatch.setenv("PLANTED_SECRET", PLANTED)
    oidc = OidcSettings(
        issuer=mock.issuer,
        client_id="headrace",
        client_secret="${PLANTED_SECRET}",  # noqa: S106  # a reference
        redirect_url=f"http://localhost:{port}/auth/callback",
        roles=("ml-team=operator", "audit=viewer:m"),
    )
    system.start({"name": "m", "model": str(mlp)}, admin_port=port, oidc=oidc)
    system.wait_ready()
    return system


def log_in(browser: httpx.Client, sub: str) -> httpx.Response:
    """What the callback answers, after the provider's own page was filled in."""
    sent = browser.get("/auth/login", params={"next": "/api/v1/whoami"})
    assert sent.status_code == 303, sent.text
    back = httpx.post(sent.headers["location"], data={"sub": sub})
    assert back.status_code in {302, 303}, back.text
    assert urlsplit(back.headers["location"]).path == "/auth/callback"
    return browser.get(back.headers["location"])


def browser_of(system: System) -> httpx.Client:
    port = urlsplit(system.where().admin_url).port
    return httpx.Client(base_url=f"http://localhost:{port}")


def test_a_person_logs_in_works_and_logs_out(known: System, mock: Mock) -> None:
    mock.set_user("ann", groups=["ml-team"])
    with browser_of(known) as browser:
        back = log_in(browser, "ann")
        cookie = back.headers.get_list("set-cookie")[0]
        me = browser.get(back.headers["location"]).json()
        page = {"origin": str(browser.base_url).rstrip("/"), "x-csrf-token": me["csrf_token"]}
        read = browser.get("/api/v1/status")
        without = browser.post("/api/v1/endpoints/m/undo", json={})
        foreign = browser.post(
            "/api/v1/gc", headers={**page, "origin": "http://evil.example"}, json={}
        )
        changed = browser.post("/api/v1/gc", headers=page, json={})
        forbidden = browser.get("/api/v1/users")
        out = browser.post("/auth/logout", headers=page)
        kept = httpx.Cookies({"headrace-session": cookie.partition("=")[2].partition(";")[0]})
        after = httpx.get(browser.base_url.join("/api/v1/status"), cookies=kept)
    trail = management(known).get("/api/v1/trail")["entries"]

    assert re.fullmatch(
        r"headrace-session=hrs_\S+; Path=/; Max-Age=43200; HttpOnly; SameSite=Lax", cookie
    )
    assert (me["name"], me["roles"]) == ("ann", ["operator"])
    assert (read.status_code, changed.status_code) == (200, 200)
    assert [one.status_code for one in (without, foreign, forbidden)] == [403] * 3
    assert (out.status_code, after.status_code) == (204, 401)
    mine = [entry["action"] for entry in trail if entry["actor"] == "ann"]
    assert mine == ["user.add", "login", "model.gc", "logout"]


@pytest.mark.long
def test_a_session_is_revoked_by_an_admin(known: System, mock: Mock) -> None:
    mock.set_user("cat", groups=["audit"])
    with browser_of(known) as browser:
        log_in(browser, "cat")
        seen = browser.get("/api/v1/status").json()["endpoints"]
        api = management(known)
        sessions = api.get("/api/v1/tokens", kind="session")["tokens"]
        mine = next(one for one in sessions if one["owner"] == "cat")
        api.delete(f"/api/v1/tokens/{mine['id']}")
        after = browser.get("/api/v1/status")

    assert [endpoint["name"] for endpoint in seen] == ["m"]
    assert after.status_code == 401


@pytest.mark.long
def test_a_code_is_taken_once_and_only_from_the_browser_that_was_sent(
    known: System, mock: Mock
) -> None:
    mock.set_user("ann", groups=["ml-team"])
    with browser_of(known) as browser, browser_of(known) as other:
        sent = browser.get("/auth/login")
        back = httpx.post(sent.headers["location"], data={"sub": "ann"}).headers["location"]
        stolen = other.get(back)
        first = browser.get(back)
        again = browser.get(back)
        denied = browser.get("/auth/login")
        no = httpx.post(denied.headers["location"], data={"action": "deny"})
        told = browser.get(no.headers["location"])

    assert (stolen.status_code, first.status_code, again.status_code) == (403, 303, 403), first.text
    assert (told.status_code, "access_denied" in told.text) == (403, True)


# Streams.


@pytest.mark.long
def test_a_stream_ends_when_its_token_is_revoked(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)})
    system.wait_ready()
    api = management(system)
    made = api.post("/api/v1/tokens", {"owner": "ci", "roles": ["viewer"]})
    connection = http.client.HTTPConnection(urlsplit(system.where().admin_url).netloc, timeout=40)
    headers = {"authorization": f"Bearer {made['token']}"}
    connection.request("GET", "/api/v1/watch", headers=headers)
    answer = connection.getresponse()
    first = answer.readline()
    api.delete(f"/api/v1/tokens/{made['id']}")
    rest: list[Any] = answer.read().splitlines()
    connection.close()

    assert (answer.status, first) == (200, b"retry: 2000\n")
    assert not [line for line in rest if line.startswith(b"data:")]


QUERIES = ("events?endpoint=", "watch?endpoint=", "history?endpoint=", "rollouts?endpoint=")


def test_what_a_caller_may_not_see_answers_as_what_is_not_there(system: System, mlp: Path) -> None:
    """Law: of every route that names something, with a role for another endpoint."""
    system.start({"name": "mine", "model": str(mlp)}, {"name": "other", "model": str(mlp)})
    system.wait_ready()
    api = management(system)
    token = api.post("/api/v1/tokens", {"owner": "ci", "roles": ["operator:mine"]})["token"]
    keys = [api.post("/api/v1/keys", {"name": "other", "scopes": ["infer:other"]}) for _ in "ab"]
    silence = api.post("/api/v1/silences", {"endpoint": "other", "duration_s": 60.0})["id"]
    rest = dict.fromkeys(("generation", "version", "run_id", "token_id"), "1")
    rest |= {"verb": "pause", "rollout_id": "r9"}

    def answers(name: str, key: str, silence: str = "0123abcd") -> list[object]:
        names = {"name": name, "stream": name, "key": key, "silence": silence}
        routes = [(method, path.format_map(rest | names)) for method, path in RULES if "{" in path]
        routes += [("GET", f"/api/v1/{query}{name}") for query in (*QUERIES, "logs?source=")]
        found: list[object] = []
        for method, path in routes:
            status, told = system.call(method, f"{system.where().admin_url}{path}", token=token)
            text = re.sub(
                r"'(request_id|instance)': '[^']*'", "", f"{method} {path} {status} {told}"
            )
            text = text.replace(key, "KEY").replace(name, "NAME")
            found.append(text.replace(silence, "SILENCE"))
        return found

    assert answers("other", "other", silence) == answers("nones", "nones")
    assert answers("other", keys[0]["id"]) == answers("other", "k7m2p9x4w3ab")
