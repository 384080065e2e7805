"""A worker whose broker's client does not return from a call ends by itself."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from headrace.streaming.settings import EXIT_STALLED
from tests.e2e.streaming.workers import double, opened, settings

pytestmark = [pytest.mark.e2e, pytest.mark.long]

HANG = """
import ctypes, sys
from headrace.streaming import __main__
from headrace.streaming.brokers.log.session import LogSession

LIBC = ctypes.CDLL(None)

def forever(self, max_records, timeout_s):
    print("hangs", flush=True)
    while True:
        LIBC.sleep(1000)

LogSession.poll = forever
sys.exit(__main__.main(["--settings", sys.argv[1]]))
"""


@pytest.fixture
def process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A worker that hangs in a poll."""
    broker = opened(folder)
    broker.close()
    file = folder / "settings.json"
    file.write_bytes(msgspec.json.encode(settings(folder, double(folder), drain_timeout_s=1.0)))
    with (folder / "log.txt").open("w") as log:
        made = subprocess.Popen(
            [sys.executable, "-c", HANG, str(file)], stdout=subprocess.PIPE, stderr=log, text=True
        )
    assert made.stdout is not None
    assert made.stdout.readline() == "hangs\n"
    yield made
    made.kill()
    made.wait()
    made.stdout.close()


def test_a_call_that_does_not_return_ends_the_process_with_the_reason(
    process: subprocess.Popen[str], folder: Path
) -> None:
    assert process.wait(60) == EXIT_STALLED
    lines = (folder / "log.txt").read_text().splitlines()

    assert lines[-1].endswith("has waited for its broker's client for 20 s, and ends")
    assert "in forever" in lines[-2]


def test_a_signal_ends_it_soon_after_the_drain_time(
    process: subprocess.Popen[str], folder: Path
) -> None:
    process.send_signal(signal.SIGTERM)

    assert process.wait(15) == EXIT_STALLED
    assert "has not stopped within 6 s, and ends" in (folder / "log.txt").read_text()
