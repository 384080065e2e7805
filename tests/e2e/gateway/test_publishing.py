"""Snapshots that Envoy refuses, and several at once."""

import asyncio
import dataclasses
import os
import shutil
import signal
from typing import Any

import pytest

from headrace.gateway import (
    EnvoyGateway,
    GatewayUnavailableError,
    Snapshot,
    SnapshotRejectedError,
    build_snapshot,
)
from headrace.gateway.resources import Resource
from headrace.gateway.snapshot import CLUSTERS, KINDS, ResourceGroup
from tests.e2e.gateway.lab import Lab, client, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


def _texts(gateway: EnvoyGateway) -> dict[str, str]:
    return {kind.file: (gateway.settings.run_dir / kind.file).read_text() for kind in KINDS}


def _unknown_cluster(snapshot: Snapshot) -> Snapshot:
    route: Resource = {"match": {"prefix": "/"}, "route": {"cluster": "nowhere"}}
    server = dataclasses.replace(snapshot.server, before=[route])
    return dataclasses.replace(snapshot, server=server)


def _misspelt_cluster(snapshot: Snapshot) -> Snapshot:
    return _with_cluster(snapshot, {"name": "bad~1", "lb_polizy": "RANDOM"})


def _impossible_cluster(snapshot: Snapshot) -> Snapshot:
    return _with_cluster(snapshot, {"name": "bad~1", "connect_timeout": "-1s"})


def _with_cluster(snapshot: Snapshot, wrong: Resource) -> Snapshot:
    bad = {**snapshot.clusters[0], **wrong}
    return dataclasses.replace(
        snapshot, shared=ResourceGroup([*snapshot.shared.resources, bad], CLUSTERS.type_name)
    )


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_unknown_cluster, "nowhere"),
        (_misspelt_cluster, "lb_polizy"),
        (_impossible_cluster, "Invalid duration"),
    ],
)
async def test_a_refused_snapshot_says_why_and_the_last_good_one_stays(
    lab: Lab, spoil: Any, reason: str
) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m", one))
    before = _texts(gateway)
    wanted = build_snapshot(gateway.settings, [endpoint("m", one), endpoint("new", two)])

    with pytest.raises(SnapshotRejectedError, match=reason):
        await gateway.publish(spoil(wanted))

    assert _texts(gateway) == before
    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).json()["replica"] == "1"
        assert (await http.get("/v2/models/new")).status_code == 404
        await gateway.publish(wanted)
        assert (await http.get("/v2/models/new")).json()["replica"] == "2"


async def test_a_file_that_is_no_json_is_refused_and_replaced(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    broken = gateway.settings.run_dir / "broken"
    good = _texts(gateway)["rds.json"]
    broken.write_text("{")
    broken.replace(gateway.settings.run_dir / "rds.json")
    restored = gateway.settings.run_dir / "restored"
    restored.write_text(good)
    restored.replace(gateway.settings.run_dir / "rds.json")

    await lab.publish(gateway, endpoint("m", lab.replica("2")))

    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).json()["replica"] == "2"


async def test_many_publishes_at_once_end_with_the_last_one(lab: Lab) -> None:
    replicas = [lab.replica(str(i)) for i in range(3)]
    gateway = await lab.start()

    async with asyncio.TaskGroup() as group:
        for i in range(30):
            group.create_task(lab.publish(gateway, endpoint("m", replicas[i % 3])))

    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).json()["replica"] == "2"


async def test_envoy_keeps_serving_what_a_stopped_publisher_left(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    gateway = await lab.start(endpoint("m", one))

    publishing = asyncio.create_task(lab.publish(gateway, endpoint("m", two)))
    await asyncio.sleep(0)
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    await lab.publish(gateway, endpoint("m", one, two))

    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).status_code == 200


async def test_an_envoy_that_hangs_is_a_timeout_and_no_file_changes(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")), publish_timeout_s=0.5)
    before = _texts(gateway)
    pid = gateway.pid
    assert pid is not None

    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(GatewayUnavailableError, match="does not answer"):
        await lab.publish(gateway, endpoint("m", lab.replica("2")))
    os.kill(pid, signal.SIGCONT)

    assert _texts(gateway) == before


async def test_a_file_that_envoy_does_not_see_is_a_timeout_and_restored(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    elsewhere = lab.directory / "elsewhere"
    shutil.copytree(gateway.settings.run_dir, elsewhere, ignore=shutil.ignore_patterns("*.sock"))
    publisher = dataclasses.replace(gateway.publisher, directory=elsewhere, timeout_s=0.2)
    wanted = build_snapshot(gateway.settings, [endpoint("m", lab.replica("2"))])

    with pytest.raises(GatewayUnavailableError, match=r"did not accept cds\.json in 0\.2 s"):
        await publisher.publish(wanted)

    assert {k.file: (elsewhere / k.file).read_text() for k in KINDS} == _texts(gateway)


async def test_ports_can_move_while_envoy_runs(lab: Lab) -> None:
    one = lab.replica("1")
    gateway = await lab.start(endpoint("m", one))
    moved = lab.settings()

    await gateway.publish(build_snapshot(moved, [endpoint("m", one)]))

    async with client(gateway) as http:
        answer = await http.get(f"http://127.0.0.1:{moved.http_port}/v2/models/m")
    assert answer.json()["replica"] == "1"
