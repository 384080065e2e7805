"""The command as it is installed, in a process of its own, on a home of its own."""

import contextlib
import os
import pty
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.testing import models

HEADRACE = Path(sys.executable).parent / "headrace"
PORTS = ("--http-port", "0", "--grpc-port", "0", "--metrics-port", "0", "--admin-port", "0")


@dataclass(slots=True)
class Shell:
    """Runs commands in `folder`, whose home is `folder/home`."""

    folder: Path
    environment: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("HEADRACE_")}
        self.environment = kept | {
            "HEADRACE_HOME": str(self.home),
            "NO_COLOR": "1",
            "XDG_CONFIG_HOME": str(self.folder / "config"),  # not the developer's own contexts
        }

    @property
    def home(self) -> Path:
        return self.folder / "home"

    def run(self, *arguments: str | Path, stdin: bytes = b"") -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(  # our own command
            [HEADRACE, *arguments],
            input=stdin,
            capture_output=True,
            cwd=self.folder,
            env=self.environment,
            timeout=120,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    def on_terminal(self, *arguments: str | Path) -> tuple[int, str]:
        """A command's exit status and what a terminal showed, with all control sequences."""
        ours, theirs = pty.openpty()
        running = subprocess.Popen(  # our own command
            [HEADRACE, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=self.folder,
            env=self.environment | {"TERM": "xterm", "COLUMNS": "150"},
        )
        os.close(theirs)
        shown = bytearray()
        with contextlib.suppress(OSError):  # how the end of a terminal is told
            while part := os.read(ours, 65536):
                shown += part
        os.close(ours)
        return running.wait(timeout=60), shown.decode()

    def start(self, *arguments: str | Path) -> "subprocess.Popen[str]":
        return subprocess.Popen(  # our own command
            [HEADRACE, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
            env=self.environment,
        )


MakeShell = Callable[[], Shell]


@pytest.fixture(scope="module")
def make_shell() -> Iterator[MakeShell]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        shells: list[Shell] = []

        def make() -> Shell:
            folder = Path(directory) / str(len(shells))
            folder.mkdir()
            (folder / "mlp.onnx").write_bytes(models.mlp())
            (folder / "bad.onnx").write_text("no model")
            shell = Shell(folder)
            shells.append(shell)
            return shell

        yield make
        for shell in shells:
            shell.run("down", "--drain-s", "1")


@pytest.fixture
def shell(make_shell: MakeShell) -> Shell:
    return make_shell()


@pytest.fixture(scope="module")
def up(make_shell: MakeShell) -> Shell:
    """A running system with the endpoints `digits` and `second`."""
    shell = make_shell()
    (shell.folder / "headrace.yaml").write_text(
        "version: 1\n"
        "endpoints:\n"
        "  - {name: digits, model: ./mlp.onnx}\n"
        "  - {name: second, model: ./mlp.onnx}\n"
    )
    done = shell.run("up", "--detach", *PORTS)
    assert done.returncode == 0, done.stderr
    return shell
