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
    "tabs.yaml": SPEC.replace("  - name", "\t- name"),
    "list.yaml": "- a\n- b\n",
    "nothing.yaml": "",
    "doubled.yaml": "version: 1\n" + SPEC,
    "word.yaml": SPEC + "    model: ./mlp.onnx\n    replicas: two\n",
    "negative.yaml": SPEC + "    model: ./mlp.onnx\n    replicas: -1\n",
    "two_sources.yaml": SPEC + "    model: m:1\n    upstream: {url: 'http://127.0.0.1:9'}\n",
    "no_source.yaml": SPEC + "    replicas: 1\n",
    "upstream.yaml": SPEC + "    upstream: {url: 'ftp://x'}\n",
    "tiers.yaml": "tiers: [{name: free, requests_per_s: 5}]\n" + SPEC + "    model: m:1\n",
    "unit.yaml": SPEC + "    model: m:1\n    slo: {latency_s: 150ms}\n",
    "strategy.yaml": SPEC + "    model: m:1\n    rollout: {strategy: canery}\n",
    "steps.yaml": SPEC
    + "    model: m:1\n    rollout: {strategy: canary, steps: [{weight: 50}, {weight: 10}]}\n",
    "bounds.yaml": SPEC + "    model: m:1\n    autoscale: {min_replicas: 5, max_replicas: 2}\n",
    "method.yaml": SPEC + "    model: m:1\n    access: [apikey]\n",
    "column.yaml": SPEC + "    model: m:1\n    payload_log: {drop: [pixel]}\n",
    "spelled.yaml": "endpoints:\n  - name: digits\n    model: ./mlp.onnx\n"
    "    payload_log: {hash: [input.inptu]}\n  - {name: second, model: ./mlp.onnx}\n",
    "same.yaml": SPEC + "    versions: [{model: m:1, weight: 50}, {model: m:1, weight: 50}]\n",
    "others.yaml": "endpoints: [{name: third, model: ./mlp.onnx}]\n",
    "ghost.yaml": "endpoints:\n  - {name: digits, model: ghost:1}\n"
    "  - {name: second, model: ./mlp.onnx}\n",
    "newer.yaml": "endpoints:\n  - {name: digits, model: 'digits:99'}\n"
    "  - {name: second, model: ./mlp.onnx}\n",
    "rows.csv": "a,b\n1,2\n",
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
    Mistake(command="check tabs.yaml", status=1, told=("(line 3)", "use spaces")),
    Mistake(command="check list.yaml", status=1, told=("must be a mapping", "holds a list")),
    Mistake(command="check nothing.yaml", status=1, told=("'endpoints', but holds nothing",)),
    Mistake(command="check doubled.yaml", status=1, told=("version (line 2): appears twice",)),
    Mistake(
        command="check word.yaml",
        status=1,
        told=("endpoints[0].replicas (line 5): should be a valid integer, got 'two'",),
    ),
    Mistake(
        command="check negative.yaml",
        status=1,
        told=("endpoints[0].replicas (line 5)", "greater than or equal to 1, got -1"),
    ),
    Mistake(
        command="check two_sources.yaml",
        status=1,
        told=("'model' and 'upstream' exclude each other; keep one",),
    ),
    Mistake(command="check no_source.yaml", status=1, told=("needs 'model', 'versions'",)),
    Mistake(
        command="check upstream.yaml",
        status=1,
        told=("endpoints[0].upstream.url (line 4)", "'ftp://x'", "must be http://HOST:PORT"),
    ),
    Mistake(
        command="check tiers.yaml",
        status=1,
        told=("no endpoint identifies its callers", "set `access: [key]`"),
    ),
    Mistake(
        command="check unit.yaml",
        status=1,
        told=("slo.latency_s (line 5): is in seconds: write 0.15 instead of '150ms'",),
    ),
    Mistake(
        command="check strategy.yaml",
        status=1,
        told=("is 'canery'; did you mean 'canary'?", "'blue-green'"),
    ),
    Mistake(
        command="check steps.yaml",
        status=1,
        told=("(line 5): steps must increase, but 50 is followed by 10",),
    ),
    Mistake(
        command="check bounds.yaml",
        status=1,
        told=("autoscale (line 5): min_replicas 5 is above max_replicas 2",),
    ),
    Mistake(
        command="check method.yaml",
        status=1,
        told=("1 mistake", "endpoints[0].access[0]", "'apikey', which must be key, jwt"),
    ),
    Mistake(
        command="check column.yaml",
        status=1,
        told=("payload_log.drop[0] (line 5)", "must be input.NAME, output.NAME or caller"),
    ),
    Mistake(
        command="check same.yaml",
        status=1,
        told=("'m:1' is already in endpoints[0].versions[0]; one weight per model",),
    ),
    Mistake(command="check", status=2, told=("name one spec file, such as headrace.yaml",)),
    Mistake(command="up mlp.onnx -f split.yaml", status=2, told=("a second target",)),
    Mistake(command="up mlp.onnx --slo-p99 150", status=2, told=("write 150ms or 150s",)),
    Mistake(
        command="up mlp.onnx --replicas 9 --max-replicas 2",
        status=2,
        told=("--max-replicas: 2 is less than the initial --replicas 9",),
    ),
    Mistake(
        command="up split.yaml --replicas 2",
        status=2,
        told=("--replicas: not valid with a spec file; set `replicas` of the endpoint",),
    ),
    Mistake(
        command="up mlp.onnx --oidc-issuer https://x",
        status=2,
        told=("OIDC login also needs --oidc-client-id, --oidc-redirect-url",),
    ),
    Mistake(command="up mlp.onnx --tls-cert a.pem", status=2, told=("--tls-cert needs --tls-key",)),
    Mistake(command="serve mlp:9", status=1, told=("no file or directory 'mlp:9'", "registry")),
    Mistake(command="models rm mlp", status=2, told=("write it as mlp:VERSION",)),
    Mistake(command="stop", status=2, told=("Did you mean `headrace down`?",)),
    Mistake(command="ls", status=2, told=("Did you mean `headrace status`?",)),
    Mistake(command="deploy mlp.onnx", status=2, told=("Did you mean `headrace up`?",)),
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
    Mistake(command="logs --requests -e nobody", status=1, told=("no endpoint 'nobody'",)),
    Mistake(command="apply -f typo.yaml", status=1, told=("did you mean 'model'?",)),
    Mistake(
        command="apply others.yaml",
        status=1,
        told=(
            "the spec removes endpoint 'digits', endpoint 'second', which it does not contain",
            "--yes",
            "headrace up MODEL --name ENDPOINT",
        ),
    ),
    Mistake(command="up others.yaml", status=1, told=("removes endpoint 'digits'", "--yes")),
    Mistake(
        command="apply ghost.yaml",
        status=1,
        told=("endpoints[0].model: the registry holds no model 'ghost'", "there are: digits"),
    ),
    Mistake(
        command="apply newer.yaml", status=1, told=("no version 99 of model 'digits'", "are: 1")
    ),
    Mistake(
        command="apply spelled.yaml",
        status=1,
        told=(
            "endpoints[0].payload_log.hash[0]: the model has no column 'input.inptu'",
            "it has input.input",
        ),
    ),
    Mistake(
        command="up mlp.onnx --admin-host 10.0.0.5",
        status=1,
        told=("--admin-host: the control plane that runs", "`kill ", "repeat this command"),
    ),
    Mistake(
        command="rollout start nobody --version 2",
        status=1,
        told=("no endpoint 'nobody'; `headrace status` lists the endpoints",),
    ),
    Mistake(command="rollout start digits", status=2, told=("pass --version N, --model REF",)),
    Mistake(
        command="rollout start digits --version two",
        status=2,
        told=("--version: 'two' is not a version number", "headrace models list"),
    ),
    Mistake(
        command="rollout start digits --version 1", status=1, told=("serves version 1 already",)
    ),
    Mistake(command="history nobody", status=1, told=("no endpoint 'nobody'",)),
    Mistake(command="remove nobody", status=1, told=("no endpoint 'nobody'",)),
    Mistake(command="infer digits --version 7", status=1, told=("serves no version 7", "status")),
    Mistake(command="infer digits -i rows.csv", status=1, told=("of the CSV",)),
    Mistake(
        command="load ftp://x --rate 10",
        status=1,
        told=("'ftp://x' is not a server address", "http://HOST:PORT"),
    ),
    Mistake(command="alerts test", status=1, told=("no receiver under 'alerts'",)),
    Mistake(command="models rm digits:1", status=1, told=("is being served", "remove it from")),
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
