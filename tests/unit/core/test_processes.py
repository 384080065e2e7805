"""Child processes: what is known of them, how they end, and what they are bounded by."""

import asyncio
import mmap
import os
import signal
import sys
from pathlib import Path

import pytest

from headrace.core import UnavailableError
from headrace.core.processes import (
    Exceeded,
    Process,
    command_of,
    cpu_s,
    resident_bytes,
    run,
    start_ticks,
)

pytestmark = pytest.mark.anyio

_NO_PID = 2**22 + 1  # above Linux's largest


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", code]


def test_a_process_is_identified_by_its_pid_and_its_start() -> None:
    ticks = start_ticks(os.getpid())
    assert ticks is not None
    process = Process.adopt(os.getpid(), ticks)
    assert process is not None
    assert process.is_running()
    process.close()

    assert Process.adopt(os.getpid(), ticks + 1) is None
    assert Process.adopt(_NO_PID, ticks) is None


def test_a_process_that_is_gone_has_no_figures_and_no_command() -> None:
    assert start_ticks(_NO_PID) is None
    assert cpu_s(_NO_PID) is None
    assert resident_bytes(_NO_PID) == 0
    assert command_of(_NO_PID) == []


def test_a_command_is_read_word_by_word() -> None:
    assert "python" in Path(command_of(os.getpid())[0]).name


def test_resident_memory_follows_what_is_allocated() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 32 << 20) as block:  # never memory that was resident before
        block.write(bytes(32 << 20))

        assert resident_bytes() - before > 16 << 20
        assert resident_bytes(os.getpid()) - before > 16 << 20


def test_a_process_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = (
        "import os, signal, time; signal.signal(15, lambda *_: None)\n"
        "os.write(3, b'x'); time.sleep(60)"
    )
    process = Process.spawn(python(code), log=tmp_path / "log", pass_fd=writer)
    os.close(writer)
    assert os.read(reader, 1) == b"x"
    os.close(reader)

    process.end_blocking(within_s=0.1)

    assert process.exit_status == -signal.SIGKILL
    assert not process.is_running()
    process.close()


def test_output_goes_to_the_descriptor_and_errors_to_the_log(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    code = "import sys; print('out'); print('err', file=sys.stderr)"
    process = Process.spawn(python(code), log=tmp_path / "log", output=writer)
    os.close(writer)

    assert process.wait_blocking()
    assert os.read(reader, 100) == b"out\n"
    assert (tmp_path / "log").read_text() == "err\n"
    os.close(reader)
    process.close()


async def test_several_tasks_wait_for_one_process(tmp_path: Path) -> None:
    process = Process.spawn(python("import sys; sys.exit(7)"), log=tmp_path / "log")

    first, second = await asyncio.gather(process.wait(), process.wait())
    assert (first, second) == (7, 7)
    assert await process.wait() == 7
    process.close()


@pytest.mark.parametrize(("code", "status"), [("pass", 0), ("1 / 0", 1)])
def test_a_fork_never_returns_into_its_caller(code: str, status: int) -> None:
    script = (
        "import os; from headrace.core.processes import fork\n"
        f"pid = fork(lambda: exec({code!r}))\n"
        "print(os.getpid(), os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    reader, writer = os.pipe()
    process = Process.spawn([sys.executable, "-c", script], log=None, output=writer)
    os.close(writer)
    process.wait_blocking()

    assert os.read(reader, 100).decode() == f"{process.pid} {status}\n"
    os.close(reader)
    process.close()


async def test_a_run_gives_its_lines_its_errors_and_its_status() -> None:
    lines: list[bytes] = []
    code = "import sys; print('a'); print(); print('b'); print('x', file=sys.stderr); sys.exit(3)"

    def on_line(line: bytes) -> bool:
        lines.append(line)
        return False

    ended = await run(python(code), timeout_s=60.0, on_line=on_line)

    assert lines == [b"a", b"b"]
    assert (ended.status, ended.exceeded, ended.error) == (3, None, "x")


async def test_a_run_ends_soon_after_its_last_line() -> None:
    code = "import time; print('done', flush=True); time.sleep(600)"

    ended = await run(python(code), timeout_s=60.0, on_line=lambda line: line == b"done")

    assert (ended.status, ended.exceeded) == (-signal.SIGKILL, None)


async def test_a_run_is_ended_when_it_takes_too_long() -> None:
    ended = await run(python("import time; time.sleep(600)"), timeout_s=0.1)

    assert (ended.status, ended.exceeded) == (-signal.SIGKILL, Exceeded.TIME)


async def test_a_run_is_ended_when_it_takes_too_much_memory() -> None:
    code = "import time; x = b'x' * (90 << 20); time.sleep(600)"

    ended = await run(python(code), timeout_s=60.0, memory_bytes=60 << 20)

    assert (ended.status, ended.exceeded) == (-signal.SIGKILL, Exceeded.MEMORY)


async def test_a_run_that_is_cancelled_leaves_no_process() -> None:
    pids: list[int] = []
    started = asyncio.Event()

    def on_line(line: bytes) -> bool:
        pids.append(int(line))
        started.set()
        return False

    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    task = asyncio.create_task(run(python(code), timeout_s=600.0, on_line=on_line))
    await started.wait()
    task.cancel()
    await asyncio.wait({task})

    assert task.cancelled()
    assert start_ticks(pids[0]) is None


async def test_a_run_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="cannot start a process: No such file"):
        await run([str(tmp_path / "none")], timeout_s=1.0)
    with pytest.raises(UnavailableError, match=r"cannot write .*: Is a directory"):
        await run(python("pass"), timeout_s=1.0, log=tmp_path)
