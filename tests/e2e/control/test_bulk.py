"""OpenAI's files and batches on the gateway's port: own to a key, limited, and killed."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from tests.e2e.control.system import System
from tests.e2e.gateway.test_openai import CHAT, MODEL, Stub, running_stub
from tests.ports import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.fixture
def stub() -> Iterator[Stub]:
    port = free_port()
    with running_stub(str(port), MODEL):
        yield Stub(port)


def endpoint(stub: Stub, name: str, **fields: Any) -> dict[str, Any]:
    upstream = {
        "url": f"http://127.0.0.1:{stub.port}",
        "protocol": "openai",
        "model": MODEL,
        "health_path": None,
    }
    return {"name": name, "upstream": upstream, "access": ["key"], **fields}


def key(system: System, name: str, *scopes: str) -> dict[str, Any]:
    status, made = system.post("/api/v1/keys", {"name": name, "scopes": scopes})
    assert status == 201, made
    found: dict[str, Any] = made
    return found


def client(system: System, text: str = "") -> httpx.Client:
    headers = {"authorization": f"Bearer {text}"} if text else {}
    return httpx.Client(base_url=system.where_was(), headers=headers, timeout=30)


def lines(count: int, model: str = "chat", **body: Any) -> bytes:
    requests = (
        {
            "custom_id": f"c{i}",
            "method": "POST",
            "url": CHAT,
            "body": {"model": model, "messages": [{"role": "user", "content": str(i)}], **body},
        }
        for i in range(count)
    )
    return b"".join(json.dumps(request).encode() + b"\n" for request in requests)


def upload(http: httpx.Client, content: bytes) -> str:
    answer = http.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": ("in.jsonl", content)}
    )
    assert answer.status_code == 200, answer.text
    document = answer.json()
    assert (document["bytes"], document["filename"]) == (len(content), "in.jsonl")
    found: str = document["id"]
    return found


def create(http: httpx.Client, content: bytes, window: str = "24h") -> str:
    body = {
        "input_file_id": upload(http, content),
        "endpoint": CHAT,
        "completion_window": window,
        "metadata": {"for": "test"},
    }
    answer = http.post("/v1/batches", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] in {"validating", "in_progress"}
    found: str = answer.json()["id"]
    return found


def wait(
    http: httpx.Client, batch: str, condition: Callable[[Any], bool], timeout_s: float = 60.0
) -> Any:
    until = time.monotonic() + timeout_s
    while True:
        document = http.get(f"/v1/batches/{batch}").json()
        if condition(document):
            return document
        assert time.monotonic() < until, document
        time.sleep(0.1)


def is_over(batch: Any) -> bool:
    return batch["status"] in {"completed", "failed", "cancelled", "expired"}


def results(http: httpx.Client, file_id: str) -> list[dict[str, Any]]:
    answer = http.get(f"/v1/files/{file_id}/content")
    assert answer.status_code == 200
    return [json.loads(text) for text in answer.content.splitlines()]


def test_a_batch_runs_with_the_rights_of_its_key_and_nobody_else_sees_it(
    system: System, stub: Stub
) -> None:
    system.start(endpoint(stub, "chat"), endpoint(stub, "other"))
    system.wait_ready()
    alice, bob = key(system, "alice", "infer:chat"), key(system, "bob", "infer:*")
    with client(system, alice["key"]) as http, client(system, bob["key"]) as others:
        batch = create(http, lines(20) + lines(1, model="other").replace(b"c0", b"x"))

        done = wait(http, batch, is_over)

        assert done["status"] == "completed", done
        assert done["request_counts"] == {"total": 21, "completed": 20, "failed": 1}
        assert done["metadata"] == {"for": "test"}
        assert done["created_at"] <= done["in_progress_at"] <= done["completed_at"]
        answered = results(http, done["output_file_id"])
        assert [line["custom_id"] for line in answered] == [f"c{i}" for i in range(20)]
        (failed,) = results(http, done["error_file_id"])
        assert failed["response"]["status_code"] == 403
        assert "'alice' may not call" in failed["response"]["body"]["error"]["message"]

        paths = [f"/v1/batches/{batch}", *(f"/v1/files/{done[name]}" for name in
                 ("input_file_id", "output_file_id", "error_file_id"))]  # fmt: skip
        for path in paths:
            assert http.get(path).status_code == 200
            denied = others.get(path)
            assert (denied.status_code, "No such" in denied.json()["error"]["message"]) == (
                404, True
            )  # fmt: skip
        assert others.get("/v1/files").json()["data"] == []
        assert others.get("/v1/batches").json()["data"] == []
        assert others.post(f"/v1/batches/{batch}/cancel").status_code == 404
        assert others.delete(f"/v1/files/{done['output_file_id']}").status_code == 404
        listed = http.get("/v1/batches", params={"limit": 1}).json()
        assert (listed["first_id"], listed["has_more"]) == (batch, False)
        assert len(http.get("/v1/files", params={"purpose": "batch_output"}).json()["data"]) == 2
        assert http.delete(f"/v1/files/{done['output_file_id']}").json()["deleted"] is True
        assert http.get(f"/v1/files/{done['output_file_id']}").status_code == 404
    # The temporary key is gone, and so are the files of the run.
    keys = system.get("/api/v1/keys")["keys"]
    assert [entry["name"] for entry in keys if entry["state"] == "valid"] == ["alice", "bob"]
    assert not list(system.home.glob("bulk/*/batches/*/"))
    assert {path.name for path in (system.home / "bulk").iterdir()} == {"key-alice"}


def test_a_batch_survives_a_kill_of_the_control_plane(system: System, stub: Stub) -> None:
    system.start(endpoint(stub, "chat"))
    system.wait_ready()
    alice = key(system, "alice", "infer:chat")
    with client(system, alice["key"]) as http:
        batch = create(http, lines(400, stub={"pause_s": 0.2}))
        wait(http, batch, lambda found: found["request_counts"]["completed"] > 20)

        system.kill_control()
        system.start()
        system.wait_ready()
        done = wait(http, batch, is_over)

        assert (done["status"], done["request_counts"]["completed"]) == ("completed", 400)
        found = results(http, done["output_file_id"])
        assert [line["custom_id"] for line in found] == [f"c{i}" for i in range(400)]
        # Only requests in flight at the kill run twice.
        assert 400 <= len(stub.seen()) <= 440
    keys = system.get("/api/v1/keys")["keys"]
    assert [entry["name"] for entry in keys if entry["state"] == "valid"] == ["alice"]


def test_a_batch_is_cancelled_expires_and_ends_with_its_key(system: System, stub: Stub) -> None:
    system.start(endpoint(stub, "chat"))
    system.wait_ready()
    alice = key(system, "alice", "infer:chat")
    slow = lines(200, stub={"pause_s": 0.5})
    with client(system, alice["key"]) as http:
        batch = create(http, slow)
        wait(http, batch, lambda found: found["request_counts"]["completed"] > 0)
        assert http.post(f"/v1/batches/{batch}/cancel").json()["status"] == "cancelling"
        cancelled = wait(http, batch, is_over)
        assert cancelled["status"] == "cancelled"
        counts = cancelled["request_counts"]
        assert 0 < counts["completed"] < 200
        assert counts["completed"] + counts["failed"] == 200
        codes = {line["error"]["code"] for line in results(http, cancelled["error_file_id"])}
        assert codes == {"batch_cancelled"}
        assert len(results(http, cancelled["output_file_id"])) == counts["completed"]

        expired = wait(http, create(http, slow, window="5s"), is_over)
        assert expired["status"] == "expired"
        codes = {line["error"]["code"] for line in results(http, expired["error_file_id"])}
        assert codes == {"batch_expired"}

        empty = wait(http, create(http, b"\n"), is_over)
        assert (empty["status"], empty["errors"]["data"][0]["code"]) == ("failed", "empty_file")

        ended = create(http, slow)
        wait(http, ended, lambda found: found["request_counts"]["completed"] > 0)
        assert system.manage("DELETE", "/api/v1/keys/alice")[0] == 200
        until = time.monotonic() + 20
        record = next(system.home.glob(f"bulk/key-alice/batches/{ended}.json"))
        while json.loads(record.read_bytes())["status"] != "failed":
            assert time.monotonic() < until
            time.sleep(0.1)
        assert http.get("/v1/batches").status_code == 401
    keys = system.get("/api/v1/keys")["keys"]
    assert [entry for entry in keys if entry["state"] == "valid"] == []


def test_hostile_requests_are_refused_in_the_form_of_openai(system: System, stub: Stub) -> None:
    gateway = {"max_body_bytes": 300 << 20}
    spec = {"version": 1, "endpoints": [endpoint(stub, "chat")], "gateway": gateway}
    system.start(spec=spec)
    system.wait_ready()
    alice = key(system, "alice", "infer:chat")
    with client(system) as nobody, client(system, alice["key"]) as http:
        unknown = nobody.get("/v1/files")
        assert unknown.status_code == 401
        assert "authentication required" in unknown.json()["error"]["message"]
        assert nobody.post("/v1/batches", json={}).status_code == 401
        form = {"file": ("../../x.jsonl", b"{}\n")}
        purpose = http.post("/v1/files", data={"purpose": "assistants"}, files=form)
        assert (purpose.status_code, purpose.json()["error"]["type"]) == (
            400, "invalid_request_error"
        )  # fmt: skip
        assert http.post("/v1/files", json={}).status_code == 400
        assert http.post("/v1/files", data={"purpose": "batch"}).status_code == 400
        named = http.post("/v1/files", data={"purpose": "batch"}, files=form).json()
        assert named["filename"] == "x.jsonl"
        for path in ("file-..%2f..%2fstate.db", "file-" + "0" * 24, "..", "x" * 5000):
            # Envoy refuses escaped slashes.
            assert http.get(f"/v1/files/{path}/content").status_code in {400, 404}, path
        body = {"input_file_id": named["id"], "endpoint": CHAT, "completion_window": "24h"}
        for wrong in (
            {"endpoint": "/v1/files"},
            {"completion_window": "9w"},
            {"completion_window": "soon"},
            {"metadata": {"a": "b" * 1000}},
            {"metadata": [1]},
        ):
            assert http.post("/v1/batches", json=body | wrong).status_code == 400, wrong
        missing = http.post("/v1/batches", json=body | {"input_file_id": "file-" + "1" * 24})
        assert missing.status_code == 404
        assert http.post("/v1/batches", content=b"[" * 60_000).status_code == 400
        large = http.post("/v1/batches", json=body | {"metadata": {"a": "b" * 100_000}})
        assert large.status_code == 413
        assert http.put("/v1/batches").status_code == 405

        def body_of(count: int) -> Iterator[bytes]:
            head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            yield head
            for _ in range(count):
                yield b"x" * (1 << 20)

        multipart = {"content-type": "multipart/form-data; boundary=b"}
        huge = http.post("/v1/files", content=body_of(210), headers=multipart)
        assert huge.status_code == 413
        assert "209715200 bytes" in huge.json()["error"]["message"]
        assert [file["id"] for file in http.get("/v1/files").json()["data"]] == [named["id"]]
    assert not list(system.home.glob("bulk/*/files/*.part"))
