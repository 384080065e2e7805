"""A run's process ends when its lease does, when it is asked to, and with whoever started it."""

import asyncio
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from headrace.control.jobs.plan import Attempt
from headrace.control.jobs.process import JobProcess, JobStarter, lease_clock
from headrace.control.model.job_runs import JobRun, RunState

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]
RUN = JobRun(id="j-1", job="j", moment=1.0, state=RunState.RUNNING, document={})
STUBBORN = "import signal, time; signal.signal(15, signal.SIG_IGN); print(); time.sleep(60)"
T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def within(seconds: float, waited: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await waited


async def start(folder: Path, code: str, *, lease_s: float = 60.0, run: JobRun = RUN) -> JobProcess:
    def command(_: JobRun) -> list[str]:
        path = str(folder / "pid")
        mark = f"import os, pathlib; pathlib.Path({path!r}).write_text(str(os.getpid()))"
        return [sys.executable, "-S", "-c", f"{mark}\n{code}"]

    starter = JobStarter(home=folder, log=folder / "jobs.log", command=command)
    return await starter(run, lease_clock() + lease_s)


async def pid_of(folder: Path) -> int:
    path = folder / "pid"
    assert await until(lambda: path.exists() and bool(path.read_text()), 20.0)
    return int(path.read_text())  # a test may


async def is_gone(pid: int) -> bool:
    def look() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().split(") ")[-1][0] in "ZX"
        except OSError:
            return True

    return await until(look)


async def until(look: Callable[[], bool], seconds: float = 10.0) -> bool:
    for _ in range(int(seconds / 0.05)):
        if look():
            return True
        await asyncio.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("code", "attempt"),
    [
        ("", Attempt(ok=True)),
        ("raise SystemExit(4)", Attempt(final=True, message="")),
        ("raise SystemExit(2)", Attempt(final=True, message="")),
        ("raise SystemExit('headrace: no such file')", Attempt(message="no such file")),
        (
            "import os; os.kill(os.getpid(), 9)",
            Attempt(message="was killed, probably because the machine ran out of memory"),
        ),
    ],
)
async def test_how_a_process_ended_is_told(tmp_path: Path, code: str, attempt: Attempt) -> None:
    process = await start(tmp_path, code)
    found = await within(30, process.wait())

    assert (found.ok, found.interrupted, found.final) == (attempt.ok, False, attempt.final)
    assert attempt.message in found.message


async def test_a_process_without_news_is_killed_when_its_lease_ends(tmp_path: Path) -> None:
    process = await start(tmp_path, STUBBORN, lease_s=2.0)
    pid = await pid_of(tmp_path)
    process.extend(lease_clock() + 1.0)

    found = await within(20, process.wait())

    assert found == Attempt(interrupted=True, message="interrupted")
    assert await is_gone(pid)


@pytest.mark.long
async def test_news_let_a_process_go_on(tmp_path: Path) -> None:
    process = await start(tmp_path, "import time; time.sleep(3)", lease_s=2.0)
    for _ in range(8):
        await asyncio.sleep(0.5)
        process.extend(lease_clock() + 2.0)

    assert (await within(20, process.wait())).ok


async def test_one_that_is_asked_to_end_may_tidy_up(tmp_path: Path) -> None:
    code = (
        "import signal, time, pathlib, sys\n"
        f"tidy = pathlib.Path({str(tmp_path / 'tidy')!r})\n"
        "signal.signal(15, lambda *_: (tidy.touch(), sys.exit(130)))\n"
        f"pathlib.Path({str(tmp_path / 'up')!r}).touch()\n"
        "time.sleep(60)"
    )
    process = await start(tmp_path, code)
    assert await until((tmp_path / "up").exists)
    process.stop()

    assert (await within(20, process.wait())).interrupted
    assert (tmp_path / "tidy").exists()  # a test may


async def test_nothing_is_left_of_one_whose_watcher_is_killed(tmp_path: Path) -> None:
    process = await start(tmp_path, STUBBORN)
    pid = await pid_of(tmp_path)
    process.kill()

    assert (await within(20, process.wait())).interrupted
    assert await is_gone(pid)


async def test_what_it_started_ends_with_it(tmp_path: Path) -> None:
    child = tmp_path / "child"
    code = (
        "import os, pathlib, time\n"
        "if os.fork() == 0:\n"
        f"    pathlib.Path({str(child)!r}).write_text(str(os.getpid()))\n"
        "    time.sleep(60)\n"
        f"while not pathlib.Path({str(child)!r}).exists(): time.sleep(0.01)\n"
    )
    process = await start(tmp_path, code)

    assert (await within(20, process.wait())).ok
    assert await is_gone(int(child.read_text()))  # a test may


@pytest.mark.parametrize(
    "who", ["", "pid = os.fork()\nif pid: os.waitpid(pid, 0); raise SystemExit\n"]
)
async def test_more_memory_than_it_may_take_ends_it_whoever_takes_it(
    tmp_path: Path, who: str
) -> None:
    run = msgspec.structs.replace(RUN, document={"memory_limit": "100MB"})
    code = f"import os, time\n{who}eaten = b'x' * 200_000_000\ntime.sleep(60)"
    process = await start(tmp_path, code, run=run)
    pid = await pid_of(tmp_path)

    found = await within(30, process.wait())

    assert (found.too_large, found.interrupted, found.final) == (True, False, False)
    assert "took more than 100MB of memory (`memory_limit`)" in found.message
    assert await is_gone(pid)


@pytest.mark.long
async def test_memory_that_files_back_is_not_counted(tmp_path: Path) -> None:
    run = msgspec.structs.replace(RUN, document={"memory_limit": "100MB"})
    large = tmp_path / "large"
    code = (
        "import mmap, time\n"
        f"with open({str(large)!r}, 'w+b') as file:\n"
        "    for _ in range(20): file.write(b'x' * 10_000_000)\n"
        "    file.flush()\n"
        "    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "    read = sum(mapped[i] for i in range(0, len(mapped), 4096))\n"
        "    time.sleep(1)\n"
    )
    process = await start(tmp_path, code, run=run)

    assert (await within(30, process.wait())).ok


async def test_what_it_says_is_in_the_log_and_the_last_line_is_the_reason(tmp_path: Path) -> None:
    said = "'x' * 3_000_000 + '\\nheadrace: full disk\\n'"
    process = await start(tmp_path, f"import sys; sys.stderr.write({said}); sys.exit(1)")
    found = await within(30, process.wait())

    log = (tmp_path / "jobs.log").read_text()  # a test may
    assert found == Attempt(message="full disk")
    assert "j-1: headrace: full disk\n" in log
    assert (tmp_path / "jobs.log").stat().st_mode & 0o777 == 0o600  # as above
    with pytest.raises(ProcessLookupError):
        os.kill(process.child.process.pid, signal.SIGKILL)
