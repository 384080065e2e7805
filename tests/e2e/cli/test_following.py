"""Commands that follow something, against servers that answer as they are told to."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from headrace.cli.base.connection import CommandTarget, gateway, reachable_address
from headrace.cli.base.management import Management
from headrace.cli.base.model_store import model_store, stored_on
from headrace.cli.base.offline import Pushed
from headrace.cli.events import follow_events
from headrace.cli.rollout.start import wait_for_rollout
from headrace.core import (
    DeadlineExceededError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from tests.ports import free_port

pytestmark = pytest.mark.e2e

TOKEN = "hrt_ä"  # noqa: S105  # none


@dataclass(slots=True)
class Script:
    """Answers one connection after the other; what was asked stands in `heads`."""

    answers: list[bytes]
    port: int = 0
    heads: list[str] = field(default_factory=list)

    @property
    def api(self) -> Management:
        url = f"http://127.0.0.1:{self.port}"
        return Management(url, token=TOKEN, is_remote=True)


@contextmanager
def scripted(*answers: bytes) -> Iterator[Script]:
    script = Script(list(answers))
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(5)
    script.port = listener.getsockname()[1]

    def serve() -> None:
        for answer in script.answers:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # nobody asks any more: `heads` tells
            with connection:
                connection.settimeout(5)
                script.heads.append(connection.recv(65536).decode("latin-1"))
                connection.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield script
    finally:
        thread.join(10)
        listener.close()
    assert len(script.heads) == len(script.answers), "not everything was asked for"


def response(document: object, status: str = "200 OK") -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def stream(text: str) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + text.encode()


def rollout(phase: str, *, weight: int = 0, over: bool = False) -> dict[str, Any]:
    return {
        "id": "r1",
        "phase": phase,
        "over": over,
        "steps": [],
        "mirror_percent": 0,
        "weight": weight,
        "reason": "",
    }


def test_waiting_tells_each_move_once_and_returns_the_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    moves = (
        rollout("progressing", weight=5),
        rollout("progressing", weight=5),
        rollout("progressing", weight=25),
        rollout("promoted", weight=100, over=True),
    )
    with scripted(*map(response, moves)) as server:
        last = wait_for_rollout(server.api, rollout("preparing"), timeout_s=30, every_s=0.001)

    assert last["phase"] == "promoted"
    assert capsys.readouterr().err.splitlines() == [
        "preparing, 0 %",
        "progressing, 5 %",
        "progressing, 25 %",
    ]
    assert all(head.startswith("GET /api/v1/rollouts/r1 ") for head in server.heads)


def test_a_control_plane_that_restarts_is_waited_for() -> None:
    with scripted(b"", response(rollout("promoted", over=True))) as server:
        last = wait_for_rollout(server.api, rollout("preparing"), timeout_s=30, every_s=0.001)

    assert last["over"] is True


def test_waiting_has_an_end() -> None:
    api = Management(f"http://127.0.0.1:{free_port()}")

    with pytest.raises(DeadlineExceededError, match="preparing, 0 %; it continues"):
        wait_for_rollout(api, rollout("preparing"), timeout_s=0.01, every_s=0.001)


def test_what_is_over_is_not_asked_for() -> None:
    api = Management(f"http://127.0.0.1:{free_port()}")

    assert wait_for_rollout(api, rollout("aborted", over=True), timeout_s=1)["phase"] == "aborted"


def test_a_stream_that_breaks_off_goes_on_after_the_last_event(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = 'retry: 1\n\nid: 5\nevent: spec\ndata: {"n": 5}\n\nid: 6\ndata: {"n'
    second = 'id: 6\nevent: spec\ndata: {"n": 6}\n\n'
    with scripted(stream(first), b"", stream(second)) as server:
        events = follow_events(server.api, "m", 4, retry_s=0.001)
        found = [next(events), next(events)]

    assert found == [{"n": 5}, {"n": 6}]
    ids = [head.lower().partition("last-event-id: ")[2].split("\r\n")[0] for head in server.heads]
    assert ids == ["4", "5", "5"]
    assert "GET /api/v1/watch?endpoint=m " in server.heads[0]
    assert capsys.readouterr().err.count("does not answer") == 1


def test_a_token_is_shown_in_letters_that_a_header_can_hold() -> None:
    with scripted(response({})) as server:
        server.api.get("/x")

    assert "authorization: Bearer hrt_?" in server.heads[0]


def test_an_upload_that_is_refused_early_is_told_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x" * (8 << 20))
    problem = {"code": "RESOURCE_EXHAUSTED", "detail": "request body exceeds the limit of 9 bytes"}
    nothing = response({"code": "NOT_FOUND", "detail": "no model"}, "404 Not Found")
    with (
        scripted(nothing, response(problem, "429 Too Many Requests")) as server,
        pytest.raises(HeadraceError, match="exceeds the limit of 9 bytes"),
    ):
        stored_on(server.api, "m", Pushed(path=tmp_path / "m.onnx"))

    assert "POST /api/v1/models/m?filename=m.onnx&format=file&digest=sha256%3A" in server.heads[1]


def test_a_model_that_is_there_already_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"x")
    digest = "sha256:2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    known = [
        {"version": "1", "digest": digest, "runtime": "onnx", "reference": "m:1"},
        {"version": "2", "digest": "sha256:00", "runtime": "onnx", "reference": "m:2"},
    ]
    with scripted(response({"models": known})) as server:
        found = stored_on(server.api, "m", Pushed(path=tmp_path / "m.onnx"))

    assert found == known[0]


def test_a_file_that_shrinks_while_it_is_sent_is_no_model(tmp_path: Path) -> None:
    from headrace.cli.base.model_store import _file_chunks  # noqa: PLC0415  # only its end matters here

    (tmp_path / "m").write_bytes(b"xy")

    with pytest.raises(InvalidArgumentError, match="became shorter while it was read"):
        list(_file_chunks(tmp_path / "m", 3))


def test_a_gateway_is_where_its_control_plane_is() -> None:
    status = {"addresses": {"http": "http://127.0.0.1:8000"}}
    with scripted(response(status)) as server:
        target = CommandTarget(home=Path("h"), url=f"http://localhost:{server.port}")
        url = gateway(target).url

    assert url == "http://127.0.0.1:8000"  # the control plane is on this very machine
    assert reachable_address("http://127.0.0.1:8000", "gpu-box") == "http://gpu-box:8000"
    assert reachable_address("http://127.0.0.1:8000", "fe80::1") == "http://[fe80::1]:8000"
    assert reachable_address("http://10.0.0.5:8000", "gpu-box") == "http://10.0.0.5:8000"


def test_an_address_that_leads_elsewhere_is_told() -> None:
    moved = b"HTTP/1.1 301 Moved\r\nlocation: https://ops.example/\r\ncontent-length: 0\r\n\r\n"
    with (
        scripted(moved) as server,
        pytest.raises(UnavailableError, match=r"redirects to https://ops\.example/; use"),
    ):
        server.api.get("/x")


def test_a_prefix_and_a_secure_address_are_kept() -> None:
    with scripted(response({"models": [], "problems": []})) as server:
        url = f"http://127.0.0.1:{server.port}/headrace"
        listed = model_store(CommandTarget(home=Path("h"), url=url)).list(None)
        assert listed == {"models": [], "problems": []}
    with pytest.raises(UnavailableError, match="check the address"):
        Management(f"https://127.0.0.1:{free_port()}", is_remote=True).get("/x")

    assert server.heads[0].startswith("GET /headrace/api/v1/models ")
