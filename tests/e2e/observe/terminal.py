"""A command that runs in a terminal of its own, which a test reads and types into."""

import contextlib
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(slots=True)
class Terminal:
    """What was shown so far, and the keyboard."""

    process: subprocess.Popen[bytes]
    descriptor: int
    shown: str = ""

    def type(self, keys: str) -> None:
        self.shown = ""
        os.write(self.descriptor, keys.encode())

    def wait_for(self, text: str, timeout_s: float = 20.0) -> None:
        deadline = time.monotonic() + timeout_s
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown[-3000:]
            ready, _, _ = select.select([self.descriptor], [], [], 0.2)
            if ready:
                self.shown += os.read(self.descriptor, 65536).decode(errors="replace")

    def ended(self, timeout_s: float = 10.0) -> int:
        """The exit status; what it still says is read, so that it can say it."""
        deadline = time.monotonic() + timeout_s
        while self.process.poll() is None:
            assert time.monotonic() < deadline
            ready, _, _ = select.select([self.descriptor], [], [], 0.05)
            if ready:
                with contextlib.suppress(OSError):
                    self.shown += os.read(self.descriptor, 65536).decode(errors="replace")
        return self.process.returncode


@contextmanager
def terminal(*arguments: str, env: Mapping[str, str]) -> Iterator[Terminal]:
    """`headrace` with `arguments` in a terminal of 120 by 30 characters."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).parent / "headrace"), *arguments]
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**env, "TERM": "xterm", "COLUMNS": "120", "LINES": "30"},
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
        os.close(ours)
