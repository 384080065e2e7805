"""Trials of models in real processes: what comes of them, and that all of them end."""

import asyncio
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from headrace.core import FailedPreconditionError
from headrace.serving.pool import fork_server as nursery
from headrace.serving.pool.load_check import MAX_MESSAGE_BYTES, LoadCheckServer
from headrace.testing import models
from tests.e2e.serving.pools import entry, python_model
from tests.processes import command_line

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

MEGABYTE = 1 << 20


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def trials() -> AsyncIterator[LoadCheckServer]:
    trials = LoadCheckServer()
    yield trials
    trials.close()


def processes_of(trials: LoadCheckServer) -> list[psutil.Process]:
    """The nursery, then keepers, trials and what these started."""
    assert trials._process is not None
    nursery_process = psutil.Process(trials._process.pid)
    found: list[psutil.Process] = nursery_process.children(recursive=True)
    return [nursery_process, *found]


async def error_of(trials: LoadCheckServer, path: Path, timeout_s: float = 20.0) -> str:
    return (await trials.run(entry("m", path), timeout_s=timeout_s)).error


async def test_a_trial_tells_what_a_model_takes(trials: LoadCheckServer, tmp_path: Path) -> None:
    load = f"self.weights = np.ones({32 * MEGABYTE}, np.uint8)"
    large = python_model(tmp_path, "large", load=load)
    small = tmp_path / "small.onnx"
    small.write_bytes(models.mlp())

    sizes = [
        (await trials.run(entry("m", path), timeout_s=20)).size_bytes for path in (large, small)
    ]

    assert 32 * MEGABYTE <= sizes[0] < 40 * MEGABYTE
    assert 0 < sizes[1] < 8 * MEGABYTE


async def test_what_is_forked_has_one_thread(trials: LoadCheckServer, tmp_path: Path) -> None:
    assert await error_of(trials, python_model(tmp_path, "good")) == ""

    nursery_process, *_ = processes_of(trials)
    assert nursery_process.num_threads() == 1  # a lock of another would stay locked in the fork


async def test_trials_run_beside_each_other(trials: LoadCheckServer, tmp_path: Path) -> None:
    slow = python_model(tmp_path, "slow", first="import time; time.sleep(1.0)\n")
    loop = asyncio.get_running_loop()
    await error_of(trials, python_model(tmp_path, "first"))

    started = loop.time()
    errors = await asyncio.gather(*(error_of(trials, slow) for _ in range(4)))

    assert errors == [""] * 4
    assert loop.time() - started < 3.0


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import os; os._exit(0)", "its code ended the process (exit status 0) while it loaded"),
        ("import os; os.kill(os.getpid(), 9)", "killed by SIGKILL while it loaded"),
        ("import ctypes; ctypes.string_at(0)", "killed by SIGSEGV while it loaded"),
        ("import time; time.sleep(100)", "it did not load within 1 s"),
        ("while True: pass", "it did not load within 1 s"),
        ("import signal; signal.pthread_sigmask(0, {1, 2, 15})\nimport time\ntime.sleep(9)", "1 s"),
        ("class Odd(BaseException): pass\nraise Odd", "BaseException (bad.py, line 2)"),
        ("raise ValueError('no weights')", "ValueError (bad.py, line 1)"),
    ],
)
async def test_whatever_a_model_does_the_trial_ends_and_says_it(
    trials: LoadCheckServer, tmp_path: Path, code: str, error: str
) -> None:
    assert error in await error_of(trials, python_model(tmp_path, "bad", first=code), 1.0)
    assert await error_of(trials, python_model(tmp_path, "good")) == ""


async def test_what_a_trial_started_ends_with_it(trials: LoadCheckServer, tmp_path: Path) -> None:
    first = "import subprocess; child = subprocess.Popen(['sleep', '1000'])\n"

    assert await error_of(trials, python_model(tmp_path, "m", first=first)) == ""

    assert not any("sleep" in command_line(process) for process in processes_of(trials))


async def test_a_trial_that_nobody_waits_for_any_more_ends(
    trials: LoadCheckServer, tmp_path: Path
) -> None:
    await error_of(trials, python_model(tmp_path, "good"))
    idle = {process.pid for process in processes_of(trials)}
    hanging = python_model(tmp_path, "hangs", first="import time; time.sleep(1000)")
    task = asyncio.ensure_future(error_of(trials, hanging, 1000.0))
    started: list[psutil.Process] = []
    async with asyncio.timeout(20):
        while len(started) < 2:  # the keeper and the trial
            await asyncio.sleep(0.02)
            started = [process for process in processes_of(trials) if process.pid not in idle]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    _, alive = psutil.wait_procs(started, timeout=10)

    assert alive == []


async def test_closing_ends_everything(tmp_path: Path) -> None:
    trials = LoadCheckServer()
    await error_of(trials, python_model(tmp_path, "good"))
    started = processes_of(trials)
    trials.close()
    trials.close()
    _, alive = psutil.wait_procs(started, timeout=10)

    assert started
    assert alive == []


async def test_a_nursery_that_cannot_be_started_is_an_error(
    monkeypatch: pytest.MonkeyPatch, trials: LoadCheckServer, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")

    with pytest.raises(FailedPreconditionError, match="cannot start a load check process"):
        await error_of(trials, python_model(tmp_path, "good"))


async def test_a_nursery_that_ends_at_once_is_an_error(
    monkeypatch: pytest.MonkeyPatch, trials: LoadCheckServer, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")

    with pytest.raises(FailedPreconditionError, match="cannot start a load check process"):
        await error_of(trials, python_model(tmp_path, "good"))


def test_an_idle_nursery_ends() -> None:
    code = (
        "import sys; from headrace.serving.pool import fork_server; fork_server.IDLE_S = 0.01; "
        "sys.exit(fork_server.main(sys.argv[1:]))"
    )
    ours, theirs = socket.socketpair()
    with ours, theirs:
        fd = theirs.fileno()
        done = subprocess.run(
            [sys.executable, "-c", code, str(fd)], pass_fds=[fd], timeout=30, check=False
        )

    assert done.returncode == 0
    assert nursery.IDLE_S > 1


@pytest.mark.parametrize("sent", [b"", b"\0", b'{"settings": ', b"x" * MAX_MESSAGE_BYTES, b"{}\n"])
def test_a_keeper_that_is_told_nonsense_ends(sent: bytes) -> None:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-m", "headrace.serving.pool.fork_server", str(theirs.fileno())],
        pass_fds=[theirs.fileno()],
    )
    theirs.close()
    caller, keeper = socket.socketpair()
    with ours, caller:
        socket.send_fds(ours, [b"t"], [keeper.fileno()])
        keeper.close()
        caller.sendall(sent)
        caller.shutdown(socket.SHUT_WR)
        caller.settimeout(20)
        assert caller.recv(1) == b""

    assert process.wait(20) == 0
