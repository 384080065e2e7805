"""What people do wrong, and what they are told: the thing, what is wrong with it, the way out.

A mistake is told on standard error, by one message that begins with `headrace: `, and by the exit
status: 1 for what cannot be done, 2 for a command that is wrong, 3 where nothing answers.
"""

import contextlib
import io
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from headrace.cli import main
from headrace.testing import models
from tests.e2e.cli.conftest import HEADRACE, PORTS, MakeShell, Shell

pytestmark = pytest.mark.e2e

SPEC: Final = "version: 1\nendpoints:\n  - name: fraud\n"
FILES: Final = {
    "notes.txt": "not a model",
    "empty.onnx": "",
    "typo.yaml": SPEC + "    modle: ./mlp.onnx\n    autoscale: {min_replica: 2}\n",
    "indented.yaml": SPEC + "   model: ./mlp.onnx\n",
    "future.yaml": "version: 9\nendpoints: []\n",
    "twice.yaml": SPEC + "    model: ./mlp.onnx\n  - {name: fraud, model: ./mlp.onnx}\n",
    "split.yaml": SPEC + "    versions: [{model: ./mlp.onnx, weight: 60}]\n",
    "code.py": "class Model:\n    pass\n",
    "traced.yaml": "tracing: {collector: 'http://127.0.0.1:9'}\n"
    + SPEC
    + "    model: ./mlp.onnx\n",
    "shadow/opentelemetry/__init__.py": "raise ModuleNotFoundError(name='opentelemetry')\n",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mistake:
    """A command, and what must stand in the answer to it."""

    command: str
    status: int
    told: tuple[str, ...]
    environment: str = ""
    long: bool = False
    """Starts a system to find it out; what it is told by, others show too."""


COLD: Final = (
    Mistake(command="up nowhere.onnx", status=2, told=("no file or directory 'nowhere.onnx'",)),
    Mistake(command="up", status=2, told=("nothing to serve", "headrace up model.onnx")),
    Mistake(
        command="up notes.txt",
        status=1,
        told=("notes.txt", "no runtime", "onnx, openvino"),
        long=True,
    ),
    Mistake(command="up cut.onnx", status=1, told=("cut.onnx", "truncated or corrupt"), long=True),
    Mistake(command="up empty.onnx", status=1, told=("empty.onnx: is empty (0 bytes)",)),
    Mistake(command="up nothing-in-it", status=1, told=("the directory holds no file",), long=True),
    Mistake(
        command="up code.py", status=1, told=("runs its author's code", "--allow-code"), long=True
    ),
    Mistake(
        command="up typo.yaml",
        status=1,
        told=(
            "3 mistakes in the spec",
            "endpoints[0].modle (line 4): is not a setting; did you mean 'model'?",
            "endpoints[0].autoscale.min_replica (line 5)",
            "did you mean 'min_replicas'?",
        ),
    ),
    Mistake(command="up indented.yaml", status=1, told=("the document (line 4): is not YAML",)),
    Mistake(command="up future.yaml", status=1, told=("version (line 1): should be 1, got 9",)),
    Mistake(command="check -f twice.yaml", status=1, told=("endpoints[1].name", "fraud")),
    Mistake(command="check -f split.yaml", status=1, told=("weight", "100")),
    Mistake(
        command="up mlp.onnx --name a/b", status=1, told=("endpoints[0].name: is 'a/b'",), long=True
    ),
    Mistake(command="up mlp.onnx --http-port 99999", status=2, told=("--http-port", "65535")),
    Mistake(command="up mlp.onnx --home notes.txt", status=2, told=("--home", "is a file")),
    Mistake(
        command="up mlp.onnx --state-url mysql://x",
        status=1,
        told=("sqlite:///PATH or postgresql://USER@HOST/DATABASE",),
        long=True,
    ),
    Mistake(
        command="up mlp.onnx",
        environment="HEADRACE_ENVOY=/nowhere/envoy",
        status=1,
        told=("/nowhere/envoy is not an executable file", "HEADRACE_ENVOY"),
        long=True,
    ),
    Mistake(
        command="up traced.yaml",
        environment="PYTHONPATH=shadow",
        status=1,
        told=("'tracing' needs OpenTelemetry", "pip install 'headrace[otel]'"),
        long=True,
    ),
    Mistake(command="status", status=3, told=("no system runs in", "`headrace up` starts it")),
    Mistake(
        command="status --server http://127.0.0.1:1",
        status=3,
        told=("http://127.0.0.1:1 does not answer", "check the address"),
    ),
    Mistake(
        command="status --server x://y",
        status=1,
        told=("'x://y' is not a server URL", "http://host"),
    ),
    Mistake(command="statsu", status=2, told=("No such command", "Did you mean 'status'")),
    Mistake(command="models push m notes.txt", status=1, told=("notes.txt: no runtime",)),
    Mistake(command="export grafana -o /proc/x", status=1, told=("/proc/x",)),
)
WARM: Final = (
    Mistake(
        command="status",
        environment="HEADRACE_TOKEN=wrong",
        status=1,
        told=("refuses: unknown token", "HEADRACE_TOKEN or --token"),
    ),
    Mistake(command="infer digit", status=1, told=("no endpoint 'digit'", "there are: digits")),
    Mistake(command="infer digits --input nowhere.npy", status=2, told=("no file 'nowhere.npy'",)),
    Mistake(command="rollout promote digits", status=1, told=("no rollout", "rollout start")),
    Mistake(command="rollout start digits --model m:9", status=1, told=("holds no model 'm'",)),
    Mistake(command="undo digits --to 99", status=1, told=("no generation 99", "newest is 1")),
    Mistake(command="keys revoke nobody", status=1, told=("'nobody'", "headrace keys list")),
    Mistake(command="logs --requests -e nobody", status=1, told=("'nobody'", "not found")),
    Mistake(command="apply -f typo.yaml", status=1, told=("did you mean 'model'?",)),
)


def fill(folder: Path) -> None:
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    (folder / "cut.onnx").write_bytes(models.mlp()[:3000])
    (folder / "nothing-in-it").mkdir(exist_ok=True)


@pytest.fixture(scope="module")
def cold(make_shell: MakeShell) -> Shell:
    """A folder with all the wrong files, where nothing runs."""
    shell = make_shell()
    fill(shell.folder)
    return shell


@pytest.fixture(scope="module")
def warm(up: Shell) -> Shell:
    """The same where a system runs."""
    fill(up.folder)
    return up


def answer(shell: Shell, mistake: Mistake, arguments: list[str]) -> tuple[int, str]:
    """Exit status and standard error; of a process of its own only where it starts a system."""
    given = dict([mistake.environment.split("=")] if mistake.environment else [])
    environment = shell.environment | given
    if mistake.long:
        done = subprocess.run(  # our own command
            [HEADRACE, *arguments],
            cwd=shell.folder,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        return done.returncode, done.stderr
    said = io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        patch.chdir(shell.folder)
        for name in {*os.environ} - {*environment}:
            patch.delenv(name)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"[[1]]")))
        return main(arguments), said.getvalue()


def check(shell: Shell, mistake: Mistake) -> None:
    arguments = mistake.command.split()
    if arguments[0] == "up" and "--http-port" not in arguments:
        arguments += PORTS
    status, errors = answer(shell, mistake, arguments)
    said = errors.rpartition("headrace: ")[2]

    assert status == mistake.status, errors
    assert errors.splitlines()[-1 - said.strip().count("\n")].startswith("headrace: ")
    assert [text for text in mistake.told if text not in f"headrace: {said}"] == []
    assert "Traceback" not in errors
    assert "a bug" not in said
    assert "//" not in said.replace("://", "")


@pytest.mark.parametrize(
    "mistake",
    [pytest.param(one, marks=[pytest.mark.long] if one.long else []) for one in COLD],
    ids=lambda mistake: f"{mistake.environment} {mistake.command}",
)
def test_a_mistake_where_nothing_runs_is_told_with_the_way_out(
    cold: Shell, mistake: Mistake
) -> None:
    check(cold, mistake)


@pytest.mark.parametrize(
    "mistake", WARM, ids=lambda mistake: f"{mistake.environment} {mistake.command}"
)
def test_a_mistake_on_a_running_system_is_told_with_the_way_out(
    warm: Shell, mistake: Mistake
) -> None:
    check(warm, mistake)


@pytest.mark.long
def test_a_port_in_use_is_named_with_its_option(cold: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = cold.run("up", "mlp.onnx", "--detach", *PORTS[2:], "--http-port", str(port))

    assert done.returncode == 1
    named = f"port {port} on 127.0.0.1 (the gateway) is in use by "
    assert named in done.stderr
    assert f"(pid {os.getpid()}); choose another with --http-port" in done.stderr
    assert "--http-port" in done.stderr


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[list[str]]:
    """How to run a command that sees a disk of 200 kB at `folder`."""
    unshare = shutil.which("unshare")
    mount = f"mount -t tmpfs -o size=200k tmpfs {folder}"
    tried = [unshare or "", "-rm", "sh", "-c"]
    if (
        unshare is None
        or subprocess.run([*tried, mount], check=False, capture_output=True).returncode
    ):
        pytest.skip("no file system can be mounted here, so no disk can be full")
    yield [*tried, f'{mount} && exec "$@"', "sh"]


@pytest.mark.long
def test_a_full_disk_is_told_as_one(cold: Shell) -> None:
    folder = cold.folder / "small"
    folder.mkdir()
    with small_disk(folder) as command:
        done = subprocess.run(  # our own command
            [*command, HEADRACE, "up", "mlp.onnx", "--detach", *PORTS],
            cwd=cold.folder,
            env=cold.environment | {"HEADRACE_HOME": str(folder / "home")},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert done.returncode == 1
    assert "full" in done.stderr or os.strerror(28) in done.stderr
    assert str(folder) in done.stderr
    assert "Traceback" not in done.stderr
