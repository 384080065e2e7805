"""A run is a process that is watched: what it says counts, and it takes no more than it may."""

import asyncio
import os
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import polars as pl
import pytest

from headrace.control.features.materializer import OnProgress, materialize_view
from headrace.core import FailedPreconditionError, HeadraceError, SystemClock, UnavailableError
from headrace.core.processes import start_ticks
from headrace.features import (
    DataSource,
    FeatureView,
    MaterializeSchedule,
    applied_definitions,
    apply_definitions,
    default_online_store,
    open_online_store,
)
from headrace.features.materialize_process import MaterializeFinished, MaterializeProgress
from headrace.features.online_writers import service_readiness

pytestmark = [pytest.mark.anyio, pytest.mark.e2e, pytest.mark.slow]
SCHEDULE = MaterializeSchedule(every_s=60.0)
VIEW = FeatureView(
    name="stats",
    entities=(),
    features=(),
    source=DataSource(path=Path("none")),
    schedule=SCHEDULE,
)
YAML = """
entities: [{name: customer, datatype: INT64}]
feature_views:
  - name: stats
    entities: [customer]
    source: {path: stats.parquet}
    materialize: {every_s: 60}
    features: [{name: age, datatype: INT64}]
feature_services: [{name: s, features: [stats]}]
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def materialize(
    folder: Path, view: FeatureView, on_progress: OnProgress, code: str = ""
) -> MaterializeFinished:
    """A run of `code` in place of the real thing, if there is any."""
    command = [sys.executable, "-c", code, view.name] if code else None
    log = folder / "features.log"
    return await materialize_view(view, on_progress, home=folder, log=log, command=command)


def ignore(_: MaterializeProgress) -> None:
    pass


async def test_a_real_run_writes_the_online_store_and_tells_how_it_goes(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text(YAML)
    time = pl.Series("event_timestamp", [0, 5]).cast(pl.Datetime("us", "UTC"))
    table = pl.DataFrame({"customer": [1, 2], "age": [30, 40], "event_timestamp": time})
    table.write_parquet(tmp_path / "stats.parquet")
    apply_definitions(tmp_path / "features.yaml", tmp_path)
    told: list[MaterializeProgress] = []

    definitions = applied_definitions(tmp_path)
    done = await materialize(tmp_path, definitions.view("stats"), told.append)

    assert (done.entities, done.written, done.newest_us) == (2, 2, 5)
    assert told == [MaterializeProgress(done=2, entities=2)]
    store = open_online_store(default_online_store(tmp_path))
    (readiness,) = service_readiness(definitions.service("s"), store, SystemClock())
    store.close()
    assert readiness.newest is not None


async def test_what_is_wrong_is_told_as_the_command_tells_it(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text(YAML)
    apply_definitions(tmp_path / "features.yaml", tmp_path)
    (tmp_path / "stats.parquet").write_bytes(b"no Parquet")
    view = applied_definitions(tmp_path).view("stats")

    with pytest.raises(HeadraceError, match=r"view 'stats', .*cannot be read as Parquet") as told:
        await materialize(tmp_path, view, ignore)

    assert told.value.code == "INVALID_ARGUMENT"


async def test_a_run_that_hangs_is_ended_and_told(tmp_path: Path) -> None:
    view = replace(VIEW, schedule=msgspec.structs.replace(SCHEDULE, timeout_s=0.3))
    pid = tmp_path / "pid"
    code = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    with pytest.raises(FailedPreconditionError, match=r"exceeded 0.3 s .*was stopped"):
        await materialize(tmp_path, view, ignore, code)

    assert not pid.exists() or start_ticks(int(pid.read_text())) is None


async def test_a_run_that_takes_too_much_memory_is_ended_and_told(tmp_path: Path) -> None:
    view = replace(VIEW, schedule=msgspec.structs.replace(SCHEDULE, max_memory_bytes=40 << 20))
    code = "import time; x = bytearray(90 << 20); x[::4096] = x[::4096]; time.sleep(600)"

    with pytest.raises(FailedPreconditionError, match="memory limit of 40 MiB"):
        await materialize(tmp_path, view, ignore, code)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ("import sys; sys.exit(7)", "exited with status 7; see .*features.log"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("print('no JSON'); print('x' * 200_000); print('{}')", "status 0"),
    ],
)
async def test_a_process_that_ends_without_a_word_is_told(
    tmp_path: Path, code: str, told: str
) -> None:
    with pytest.raises(UnavailableError, match=told):
        await materialize(tmp_path, VIEW, ignore, code)


async def test_what_it_complains_of_is_in_the_log(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError):
        await materialize(tmp_path, VIEW, ignore, "import sys; sys.exit('no memory')")

    assert "no memory" in (tmp_path / "features.log").read_text()


async def test_a_process_ends_with_whoever_started_it(tmp_path: Path) -> None:
    (tmp_path / "features.yaml").write_text(YAML)
    apply_definitions(tmp_path / "features.yaml", tmp_path)
    os.mkfifo(tmp_path / "stats.parquet")  # whoever reads it waits
    command = [
        sys.executable,
        "-m",
        "headrace.features.materialize_process",
        str(tmp_path),
        "stats",
    ]
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert process.stdin is not None

    process.stdin.close()

    assert await process.wait() == 4
    process._transport.close()  # type: ignore[attr-defined]  # its output was not read
