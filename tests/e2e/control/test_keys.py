"""A running system whose gateway asks who calls: keys made and revoked, tokens of a provider."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest

from headrace.cli.base.management import Management
from headrace.core import InvalidArgumentError, PermissionDeniedError
from tests.e2e.control.system import ROW, System
from tests.e2e.gateway.issuing import AUDIENCE, ISSUER, Issuer

pytestmark = pytest.mark.e2e


def management(system: System, token: str = "") -> Management:
    return Management(system.where().admin_url, token=token or system.token())


def asked(system: System, mlp: Path, **fields: Any) -> None:
    """Start with one endpoint that asks, and one that says nothing."""
    asking = {"name": "m", "model": str(mlp), "access": ["key", "jwt"], **fields}
    system.start(asking, {"name": "silent", "model": str(mlp)})
    system.wait_ready()


def called(system: System, key: str = "", name: str = "m", *, host: str = "") -> int:
    """The status of one inference with a key, or with a token, which both go as a bearer's."""
    url = host or system.where().http_url
    return system.call("POST", f"{url}/v2/models/{name}/infer", ROW, token=key)[0]


class Load:
    """One caller with one key, who never stops."""

    def __init__(self, system: System, key: str) -> None:
        self.statuses: list[int] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(system, key))

    def _run(self, system: System, key: str) -> None:
        while not self._over.is_set():
            self.statuses.append(called(system, key))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def test_a_key_counts_from_the_answer_that_made_it_until_the_one_that_revoked_it(
    system: System, mlp: Path
) -> None:
    asked(system, mlp)
    api = management(system)
    others = api.post("/api/v1/keys", {"name": "others"})["key"]

    with Load(system, others) as load:
        rounds = []
        for _ in range(5):
            made = api.post("/api/v1/keys", {"name": "shop", "scopes": ["infer:m"]})
            at_once = called(system, made["key"])
            api.delete(f"/api/v1/keys/{made['id']}")
            rounds.append((at_once, called(system, made["key"])))

    assert rounds == [(200, 401)] * 5
    assert len(load.statuses) > 10
    assert set(load.statuses) == {200}
    assert called(system) == 401
    assert called(system, name="silent") == 200, "loopback asks only where the spec says so"
    listed = api.get("/api/v1/keys")["keys"]
    assert [key["state"] for key in listed] == ["valid", *["revoked"] * 5]
    stored = b"".join(path.read_bytes() for path in system.home.glob("state.db*"))
    assert others.encode() not in stored
    trail = api.get("/api/v1/trail", limit=1000)["entries"]
    assert [e["action"] for e in trail].count("key.revoke") == 5


@pytest.mark.long
def test_a_key_is_for_its_scopes(system: System, mlp: Path) -> None:
    asked(system, mlp)
    api = management(system)
    elsewhere = api.post("/api/v1/keys", {"name": "a", "scopes": ["infer:other"]})["key"]
    version = api.post("/api/v1/keys", {"name": "b", "scopes": ["infer:m:1"]})["key"]
    url = f"{system.where().http_url}/v2/models/m/versions/1/infer"

    assert called(system, elsewhere) == 403
    assert called(system, version) == 403, "which version answers, a split decides"
    assert system.call("POST", url, ROW, token=version)[0] == 200


@pytest.mark.long
def test_a_key_outlives_its_control_plane_but_not_its_time(system: System, mlp: Path) -> None:
    asked(system, mlp)
    api = management(system)
    lasting = api.post("/api/v1/keys", {"name": "lasting"})["key"]
    brief = api.post("/api/v1/keys", {"name": "brief", "expires_in_s": 4.0})["key"]
    before = called(system, brief)

    system.kill_control()
    time.sleep(5)

    url = system.where_was()
    assert before == 200
    assert called(system, lasting, host=url) == 200
    assert called(system, brief, host=url) == 401
    system.start()
    system.wait_ready()
    assert called(system, lasting) == 200
    assert called(system, brief) == 401


@pytest.mark.long
def test_operators_make_keys_for_what_they_operate(system: System, mlp: Path) -> None:
    asked(system, mlp)
    api = management(system)
    token = api.post("/api/v1/tokens", {"owner": "ci", "roles": ["operator:m"]})["token"]
    operator = management(system, token)
    everything = api.post("/api/v1/keys", {"name": "all"})
    own = operator.post("/api/v1/keys", {"name": "own", "scopes": ["infer:m"]})

    with pytest.raises(PermissionDeniedError, match=r"infer:\*"):
        operator.post("/api/v1/keys", {"name": "more"})
    with pytest.raises(Exception, match="unknown API key"):
        operator.delete(f"/api/v1/keys/{everything['id']}")
    with pytest.raises(InvalidArgumentError, match="unknown tier 'gold'"):
        api.post("/api/v1/keys", {"name": "x", "tier": "gold"})
    assert [key["name"] for key in operator.get("/api/v1/keys")["keys"]] == ["own"]
    assert operator.delete("/api/v1/keys/own")["id"] == own["id"]


@pytest.mark.long
def test_beyond_loopback_everything_asks_but_health(system: System, mlp: Path) -> None:
    system.start({"name": "m", "model": str(mlp)}, host="0.0.0.0")  # noqa: S104  # called on loopback
    system.wait_ready()
    url = system.where().http_url
    key = management(system).post("/api/v1/keys", {"name": "shop"})["key"]

    def get(path: str) -> int:
        return system.call("GET", f"{url}{path}")[0]

    assert (get("/v2/health/live"), get("/v2/health/ready")) == (200, 200)
    assert {get(p) for p in ("/v2", "/v2/models", "/v2/models/m", "/v2/models/no", "/x")} == {401}
    assert called(system) == 401
    assert called(system, key) == 200


@pytest.mark.long
def test_tokens_follow_the_providers_keys_in_their_file(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    issuer, successor = Issuer(), Issuer()
    jwks = tmp_path / "jwks.json"
    jwks.write_text(issuer.key_set)
    provider = {
        "name": "corp",
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "jwks_file": str(jwks),
    }
    spec = {
        "version": 1,
        "auth": {"jwt": [provider]},
        "endpoints": [{"name": "m", "model": str(mlp), "access": ["jwt:corp"]}],
    }
    system.start(spec=spec)
    system.wait_ready()
    old, new = issuer.token(), successor.token()
    before = [called(system, token) for token in (old, new)]

    (tmp_path / "next").write_text(successor.key_set)
    (tmp_path / "next").replace(jwks)
    deadline = time.monotonic() + 10
    while called(system, new) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    assert before == [200, 401]
    assert called(system, old) == 401
    system.manage("POST", "/api/v1/apply", {**spec, "auth": {}})
    deadline = time.monotonic() + 10
    while called(system, new) != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_a_broken_key_set_refuses_its_providers_tokens_and_nothing_else(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    issuer, jwks = Issuer(), tmp_path / "jwks.json"
    jwks.write_text(issuer.key_set)
    provider = {"name": "corp", "issuer": ISSUER, "audiences": [AUDIENCE], "jwks_file": str(jwks)}
    spec = {
        "version": 1,
        "auth": {"jwt": [provider]},
        "endpoints": [{"name": "m", "model": str(mlp), "access": ["jwt:corp", "key"]}],
    }
    system.start(spec=spec)
    system.wait_ready()
    api = management(system)
    made = api.post("/api/v1/keys", {"name": "shop"})
    assert called(system, issuer.token()) == 200

    jwks.write_text('{"keys": [{"kty": "RSA", "n": "AQ", "e": "AQAB"}]}')
    deadline = time.monotonic() + 10
    while called(system, issuer.token()) != 401:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert called(system, made["key"]) == 200
    api.delete(f"/api/v1/keys/{made['id']}")
    assert called(system, made["key"]) == 401
    (tmp_path / "next").write_text(issuer.key_set)
    (tmp_path / "next").replace(jwks)
    deadline = time.monotonic() + 10
    while called(system, issuer.token()) != 200:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.long
def test_a_token_is_refused_soon_after_its_key_is_gone_from_the_providers_url(
    system: System, mlp: Path
) -> None:
    issuer, successor = Issuer(), Issuer()
    given = {"text": issuer.key_set}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(given["text"].encode())

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    provider = {
        "name": "corp",
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "jwks_url": f"http://127.0.0.1:{server.server_address[1]}/keys",
        "jwks_cache_s": 1.0,
    }
    endpoint = {"name": "m", "model": str(mlp), "access": ["jwt:corp"]}
    system.start(spec={"version": 1, "auth": {"jwt": [provider]}, "endpoints": [endpoint]})
    system.wait_ready()
    old, new = issuer.token(), successor.token()
    deadline = time.monotonic() + 20
    while called(system, old) != 200:
        assert time.monotonic() < deadline

    given["text"] = successor.key_set
    while (called(system, old), called(system, new)) != (401, 200):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    server.shutdown()
    server.server_close()
