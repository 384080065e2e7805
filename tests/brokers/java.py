"""Server processes that stop, die, freeze and start again with their data; options of Java's."""

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from scripts.brokers import why_not

STARTS_WITHIN_S: Final = 180.0
STOPS_WITHIN_S: Final = 20.0
"""The last controller of a cluster that stops finds no other, and does not end."""
_STARTER: Final = ThreadPoolExecutor(1)
"""The thread with which the processes end, whichever one asked for them (PR_SET_PDEATHSIG)."""
_LOGGING: Final = """\
<Configuration status="error">
  <Appenders>
    <Console name="C" target="SYSTEM_ERR">
      <PatternLayout pattern="%d{{ISO8601}} %p %c{{1}} %m%n"/>
    </Console>
  </Appenders>
  <Loggers><Root level="warn"><AppenderRef ref="C"/></Root>{loggers}</Loggers>
</Configuration>
"""


def skip_without(kind: str) -> None:
    """Skip the test if `kafka` or `pulsar` cannot run here."""
    if reason := why_not(kind):
        pytest.skip(reason)


def write_logging(folder: Path, *told: str) -> str:
    """Write the configuration of log4j in which these loggers tell more; return Java's option."""
    loggers = "".join(f'<Logger name="{name}" level="info"/>' for name in told)
    file = folder / "log4j2.xml"
    file.write_text(_LOGGING.format(loggers=loggers))
    return f"-Dlog4j2.configurationFile={file}"


def write_properties(file: Path, properties: Mapping[str, object]) -> None:
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))


def listens(port: int) -> bool:
    """Return whether a server on this machine accepts connections."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex(("127.0.0.1", port)) == 0


@dataclass(kw_only=True)
class ServerProcess:
    """A process that is ready as soon as `is_ready` holds."""

    command: list[str]
    log: Path
    is_ready: Callable[[], bool]
    process: "subprocess.Popen[bytes] | None" = field(default=None, init=False)

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def begin(self) -> None:
        """Start it, and wait for nothing."""
        with self.log.open("wb") as log:
            self.process = _STARTER.submit(
                subprocess.Popen,
                ["setpriv", "--pdeathsig", "KILL", *self.command],  # the developer's own
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the parent, which stops it in order
            ).result()

    def wait_until_ready(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + STARTS_WITHIN_S
        while not self.is_ready():
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, f"not ready; {self.log}"
            time.sleep(0.05)

    def start(self) -> None:
        self.begin()
        self.wait_until_ready()

    def end(self) -> None:
        """Ask it to end in order, and wait for nothing."""
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.terminate()

    def stop(self) -> None:
        """End it in order; nothing if it does not run."""
        self.end()
        process, self.process = self.process, None
        if process is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOPS_WITHIN_S)
        process.kill()
        process.wait()

    def kill(self) -> None:
        """End it by SIGKILL; nothing if it does not run."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
