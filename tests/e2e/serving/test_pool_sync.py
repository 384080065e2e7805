"""The control plane's side of a pool, against real copies and against what is none."""

import asyncio
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import pytest

from headrace.control.base.journal import ChangeSignal
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    Revision,
    make_revision,
)
from headrace.control.model.observed import Observed, Replica, ReplicaPhase
from headrace.control.reconcile.pools import Hosting, PoolSync, put_models
from headrace.core import EndpointName, ReplicaSettings, SystemClock, UnavailableError
from headrace.core.fetch import ask
from headrace.core.spec.scale import PoolSpec
from headrace.serving.telemetry.report import PoolReport, models_digest
from tests.e2e.serving.pools import entry, python_model, running_pool

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class World:
    desired: DesiredState
    replica: Replica
    hosted: MutableMapping[str, frozenset[str]] = field(default_factory=dict)
    changes: ChangeSignal = field(default_factory=ChangeSignal)

    def observed(self) -> Observed:
        return Observed(replicas={self.replica.name: self.replica})

    def may_act(self) -> bool:
        return True

    def hosted_settings(self, revision: Revision) -> ReplicaSettings:
        return revision.settings


def want(*revisions: Revision) -> DesiredState:
    endpoints = tuple(
        DesiredEndpoint(
            name=revision.endpoint,
            timeout_s=None,
            arms=(DesiredArm(revision=revision, weight=100, replicas=1),),
        )
        for revision in revisions
    )
    pool = PoolSpec(name="small", replicas=1, memory_bytes=1, max_loaded=1, load_timeout_s=1)
    return DesiredState(endpoints=endpoints, pools=(pool,))


async def test_a_real_copy_hears_what_to_host_and_serves_it(tmp_path: Path) -> None:
    file = python_model(tmp_path, "a")
    revisions = [
        make_revision(
            endpoint=EndpointName(name), model=name, settings=entry(name, file), pool="small"
        )
        for name in ("a", "b")
    ]
    with running_pool(tmp_path) as copy:
        address = f"unix:{copy.socket}"
        replica = Replica(
            name="r",
            serial=1,
            endpoint="pool:small",
            version="0",
            revision_id="x",
            address=address,
            phase=ReplicaPhase.STARTING,
            since=0.0,
            pid=copy.process.pid,
        )
        world = World(desired=want(revisions[0]), replica=replica)
        task = asyncio.ensure_future(PoolSync(world=world, clock=SystemClock()).run())
        async with asyncio.timeout(10):
            await world.changes.wait()
            assert world.hosted == {"r": {revisions[0].id}}
            world.desired = want(*revisions)
            world.changes.notify()
            await world.changes.wait()
        task.cancel()
        decode = msgspec.json.Decoder(PoolReport).decode
        report = await ask(address, "/internal/models", decode, timeout_s=2.0)
        statuses = [copy.infer(name).status_code for name in ("a", "b", "c")]

    assert report is not None
    assert report.digest == models_digest([revision.settings for revision in revisions])
    assert [model.model for model in report.models] == ["a", "b"]
    assert statuses == [200, 200, 404]


@asynccontextmanager
async def answering(path: Path, answer: bytes) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    async with server:
        yield f"unix:{path}"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone", "models: 404 gone"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "does not answer as a pool"),
    ],
)
async def test_what_is_no_pool_is_an_error(tmp_path: Path, answer: bytes, message: str) -> None:
    async with answering(tmp_path / "s", answer) as address:
        with pytest.raises(UnavailableError, match=message):
            await put_models(address, Hosting(models=(), revisions=()))
