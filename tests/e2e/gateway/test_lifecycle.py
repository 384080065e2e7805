"""Start, adopt, stop, and everything that can be in the way."""

import asyncio
import errno
import itertools
import os
import signal
import socket
from pathlib import Path

import httpx
import pytest

from headrace.core import FailedPreconditionError
from headrace.core.files import size_of
from headrace.core.processes import Process, start_ticks
from headrace.gateway import (
    EnvoyGateway,
    GatewayUnavailableError,
    NotOurGatewayError,
    PortInUseError,
    SnapshotRejectedError,
    build_snapshot,
)
from tests.e2e.gateway.lab import Lab, client, endpoint, http_url

pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]


def process_of(pid: int) -> Process:
    process = Process.adopt(pid, start_ticks(pid) or 0)
    assert process is not None
    return process


async def test_another_object_adopts_what_runs_and_publishes_to_it(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    lost = await lab.start(endpoint("m", one))
    pid, settings = lost.pid, lost.settings
    assert pid is not None
    del lost

    gateway = EnvoyGateway(settings)
    await gateway.adopt(process_of(pid))
    await lab.publish(gateway, endpoint("m", two))

    assert gateway.pid == pid
    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).json()["replica"] == "2"


async def test_a_process_that_is_not_the_gateway_is_not_adopted(lab: Lab) -> None:
    gateway = await lab.start()
    stranger = EnvoyGateway(lab.settings("other"))

    with pytest.raises(NotOurGatewayError):
        await EnvoyGateway(gateway.settings).adopt(process_of(os.getpid()))
    with pytest.raises(NotOurGatewayError):
        await stranger.adopt(process_of(gateway.pid or 0))


async def test_a_start_whose_pid_cannot_be_recorded_leaves_no_process(lab: Lab) -> None:
    pids: list[int] = []

    def record(pid: int) -> None:
        pids.append(pid)
        raise OSError(errno.ENOSPC, "No space left on device")

    gateway = EnvoyGateway(lab.settings())
    with pytest.raises(GatewayUnavailableError, match="No space left"):
        await gateway.start(build_snapshot(gateway.settings, []), on_spawn=record)

    assert gateway.pid is None
    assert [start_ticks(pid) for pid in pids] == [None]


async def test_a_second_start_in_the_same_directory_is_refused(lab: Lab) -> None:
    gateway = await lab.start()

    with pytest.raises(PortInUseError):
        await EnvoyGateway(gateway.settings).start(build_snapshot(gateway.settings, []))


async def test_a_port_in_use_is_named(lab: Lab) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PortInUseError, match=f"port {port} on 127.0.0.1"):
            await lab.start(grpc_port=port)


async def test_an_address_that_is_not_this_machine_s_is_named(lab: Lab) -> None:
    with pytest.raises(
        FailedPreconditionError, match=r"cannot listen on port .* of 203\.0\.113\.7"
    ):
        await lab.start(host="203.0.113.7")


async def test_two_gateways_run_side_by_side(lab: Lab) -> None:
    one, two = lab.replica("1"), lab.replica("2")
    first = await lab.start(endpoint("m", one), name="first")
    second = await lab.start(endpoint("m", two), name="second")

    async with httpx.AsyncClient() as http:
        for gateway, replica in ((first, "1"), (second, "2")):
            answer = await http.get(http_url(gateway, "/v2/models/m"))
            assert answer.json()["replica"] == replica


async def test_stopping_lets_running_requests_end(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    pid = gateway.pid
    assert pid is not None

    async with client(gateway) as http:
        slow = asyncio.create_task(http.get("/v2/models/m/infer?sleep_s=1"))
        await asyncio.sleep(0.3)
        await gateway.stop(20)
        answer = await slow

    assert answer.status_code == 200
    assert gateway.pid is None
    assert start_ticks(pid) is None


async def test_what_does_not_end_in_time_is_cut(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        slow = asyncio.create_task(http.post("/v2/models/m/infer", content=b"sleep-for-ever"))
        await asyncio.sleep(0.3)
        await gateway.stop(0.2)
        with pytest.raises(httpx.HTTPError):
            await slow

    assert not gateway.is_running()


async def test_an_envoy_that_hangs_is_killed(lab: Lab) -> None:
    gateway = await lab.start()
    pid = gateway.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)

    await gateway.stop(0.1)

    assert start_ticks(pid) is None


async def test_stopping_twice_or_before_a_start_does_nothing(lab: Lab) -> None:
    gateway = EnvoyGateway(lab.settings())

    await gateway.stop(1)

    assert gateway.pid is None
    assert await gateway.wait() is None


async def test_the_end_of_envoy_is_noticed_and_it_can_start_again(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))
    pid = gateway.pid
    assert pid is not None

    os.kill(pid, signal.SIGKILL)
    assert await gateway.wait() == -signal.SIGKILL
    assert gateway.pid is None
    await gateway.start(build_snapshot(gateway.settings, [endpoint("m", lab.replica("2"))]))

    async with client(gateway) as http:
        assert (await http.get("/v2/models/m")).json()["replica"] == "2"


async def test_an_envoy_that_cannot_start_says_why(lab: Lab) -> None:
    log = lab.directory / "missing" / "arms.log"

    with pytest.raises(SnapshotRejectedError, match=r"missing/arms\.log"):
        await lab.start(arms_log=log)

    assert not lab.gateways[-1].is_running()


async def test_a_binary_that_is_not_envoy_says_so(lab: Lab) -> None:
    with pytest.raises(GatewayUnavailableError, match="exited during startup"):
        await lab.start(envoy=Path("/bin/false"))


async def test_a_binary_that_never_answers_is_given_up_and_ended(lab: Lab) -> None:
    script = lab.directory / "hangs"
    script.write_text("#!/bin/sh\nexec sleep 60\n")
    script.chmod(0o755)

    with pytest.raises(GatewayUnavailableError, match="was not ready in time"):
        await lab.start(envoy=script, start_timeout_s=0.3)

    assert not lab.gateways[-1].is_running()


async def test_metrics_name_the_revision_whatever_dots_its_name_has(lab: Lab) -> None:
    gateway = await lab.start(endpoint("a.b", lab.replica("1")))

    async with client(gateway) as http:
        await http.get("/v2/models/a.b")
    stats = await gateway.stats()

    assert 'envoy_cluster_upstream_rq_total{envoy_cluster_name="a+b~1"} 1' in stats


async def test_the_access_log_has_a_json_line_per_request_without_the_query(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        await http.get("/v2/models/m?token=secret", headers={"x-request-id": "r-1"})
    await gateway.stop(5)

    (line,) = gateway.access_log_path.read_text().splitlines()
    entry = httpx.Response(200, text=line).json()
    assert (entry["request_id"], entry["path"], entry["code"]) == ("r-1", "/v2/models/m", 200)
    assert (entry["cluster"], entry["attempts"]) == ("m~1", 1)
    assert "secret" not in line


async def _grows(path: Path) -> None:
    async with asyncio.timeout(20):
        for _ in itertools.count():
            if size_of(path):
                return
            await asyncio.sleep(0.05)


async def test_a_full_access_log_moves_aside_and_a_new_one_begins(lab: Lab) -> None:
    gateway = await lab.start(endpoint("m", lab.replica("1")))

    async with client(gateway) as http:
        await http.get("/v2/models/m")
        await _grows(gateway.access_log_path)
        await gateway.rotate_logs(max_bytes=10)
        await http.get("/v2/models")
    await gateway.stop(5)

    old = gateway.access_log_path.with_name("access.log.1").read_text()
    assert '"path":"/v2/models/m"' in old
    assert '"path":"/v2/models"' in gateway.access_log_path.read_text()


async def test_without_an_access_log_no_file_is_made(lab: Lab) -> None:
    gateway = await lab.start(access_log=False)

    await gateway.rotate_logs(max_bytes=10)

    assert not gateway.access_log_path.exists()
