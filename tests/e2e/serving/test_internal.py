"""What only the control plane may ask a replica, over its real Unix socket."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from headrace.serving.telemetry.report import (
    AnswersPage,
    Observe,
    PredictionCounts,
    ReplicaReport,
    as_asked,
)
from tests.e2e.replicas import Replica, running
from tests.e2e.serving.raw import BODY, INFER

pytestmark = pytest.mark.e2e

WANTED = Observe(key="r1", predictions=True, answers_percent=100)


@pytest.fixture
def local(tmp_path: Path, mlp: Path) -> Iterator[tuple[Replica, httpx.Client]]:
    """A replica on TCP and a Unix socket, and a client of the socket."""
    uds = str(tmp_path / "replica.sock")
    transport = httpx.HTTPTransport(uds=uds)
    with (
        running(tmp_path, mlp, uds=uds) as replica,
        httpx.Client(transport=transport, base_url="http://replica") as client,
    ):
        yield replica, client


def report(client: httpx.Client) -> ReplicaReport:
    return msgspec.json.decode(client.get("/internal/report").content, type=ReplicaReport)


def test_the_control_plane_observes_a_split_over_the_socket(
    local: tuple[Replica, httpx.Client],
) -> None:
    replica, client = local
    told = client.put("/internal/observe", content=msgspec.json.encode(WANTED))
    for i in range(20):
        headers = {"x-headrace-split": "r1", "x-request-id": f"id-{i}", "x-headrace-unit": "ann"}
        assert client.post(INFER, content=BODY, headers=headers).status_code == 200
    page = msgspec.msgpack.decode(client.get("/internal/answers?after=5").content, type=AnswersPage)
    found = report(client)

    assert told.status_code == 200
    assert page.cursor == 20
    assert [answer.answer_id for answer in page.answers] == [f"id-{i}" for i in range(5, 20)]
    assert found.observing == as_asked(WANTED)
    assert isinstance(found.predictions, PredictionCounts)
    assert sum(found.predictions.counts.values()) == found.answered == 20
    assert found.rss_bytes == pytest.approx(replica.rss_bytes(), rel=0.1)


def test_nobody_else_can_ask(local: tuple[Replica, httpx.Client]) -> None:
    replica, _ = local

    with httpx.Client(base_url=replica.url) as outside:
        statuses = {
            outside.get("/internal/report").status_code,
            outside.get("/internal/load").status_code,
            outside.get("/internal/answers?after=0").status_code,
            outside.get("/internal/%72eport/").status_code,
            outside.put("/internal/observe", content=b"{}").status_code,
        }

    assert statuses == {404}
