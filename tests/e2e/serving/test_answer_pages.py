"""Answers come in pages, and the control plane reads all of them."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from bench.load.client import run
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.reconcile.reports import Reports
from headrace.core.fetch import fetch
from headrace.serving.telemetry.observation import PAGE
from headrace.serving.telemetry.report import Observe
from tests.e2e.replicas import running
from tests.e2e.serving.raw import post

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_more_answers_than_a_page_holds_are_all_read_once(tmp_path: Path, mlp: Path) -> None:
    uds = str(tmp_path / "s")
    many = 2 * PAGE + 100
    requests = [
        post(headers=f"x-headrace-split: r1\r\nx-headrace-pair: {i}\r\n") for i in range(many)
    ]
    reports = Reports(replicas={})
    with running(tmp_path, mlp, uds=uds) as running_replica:
        replica = Replica(
            name="r",
            serial=1,
            endpoint="m",
            version="1",
            revision_id="x",
            address=f"unix:{uds}",
            phase=ReplicaPhase.READY,
            since=0.0,
        )
        wish = msgspec.json.encode(Observe(key="r1", answers_percent=100, pairs=True))
        told = await fetch(
            replica.address, "/internal/observe", method="PUT", body=wish, timeout_s=5
        )
        address = f"127.0.0.1:{running_replica.port}"
        await asyncio.to_thread(run, address, requests, connections=4, seconds=30, limit=many)
        first = await reports.answers(replica, 0)
        second = await reports.answers(replica, first.cursor)

    assert told.status == 200
    assert len(first.answers) == many
    assert len({answer.answer_id for answer in first.answers}) == many
    assert len({tuple(one.data for one in answer.outputs) for answer in first.answers}) == 1
    assert reports.answer_bytes("r") > 0
    assert second.answers == []
    assert second.cursor == first.cursor == many
