"""A model is tried where it can spoil nothing, and what it did wrong is told."""

import contextlib
import os
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from onnx import TensorProto, helper

from headrace.control.local.sandbox import KernelFeatures, Sandbox
from headrace.control.sandboxed.run import SandboxedInspector
from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    InvalidArgumentError,
    RequestCancelledError,
    UnsupportedModelError,
)
from headrace.core.processes import command_of
from headrace.registry import Registry
from headrace.testing import models
from tests import savedmodels
from tests.e2e.control.test_sandbox import needs_namespaces

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        (Path(directory) / "home").mkdir()
        yield Path(directory)


@pytest.fixture(scope="module")
def inspect(folder: Path) -> Iterator[SandboxedInspector]:
    with contextlib.closing(SandboxedInspector.of_home(folder / "home")) as inspect:
        yield inspect


def python_file(folder: Path, name: str, first: str) -> Path:
    """A model that does this when it is loaded, when it is proved to be a model."""
    path = folder / "sources" / name / "model.py"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = textwrap.indent(first, 8 * " ")
    path.write_text(f"{models.python_double()}\n    def load(self, path):\n{body}\n")
    return path


def test_a_model_is_inspected_as_in_this_process(inspect: SandboxedInspector, folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(models.mlp())
    (folder / "bad.onnx").write_text("no model")
    seen = inspect(path)

    assert (seen.runtime, seen.runs_code) == ("onnx", False)
    assert seen.signature.batched
    with pytest.raises(UnsupportedModelError, match=r"bad\.onnx: is text, not ONNX"):
        inspect(folder / "bad.onnx")
    with pytest.raises(UnsupportedModelError, match="does not exist"):
        inspect(folder / "nothing.onnx")
    with pytest.raises(InvalidArgumentError, match="unknown runtime 'x'"):
        inspect(path, "x")


def test_code_runs_only_where_that_is_allowed(inspect: SandboxedInspector, folder: Path) -> None:
    path = python_file(folder, "mark", "raise ValueError('it ran')")

    with pytest.raises(CodeNotAllowedError):
        inspect(path)
    with pytest.raises(UnsupportedModelError, match="it ran"):
        inspect(path, allow_code=True)


def test_a_graph_that_reads_files_is_named_by_its_operators(
    inspect: SandboxedInspector, folder: Path
) -> None:
    nodes = [*savedmodels.PERCEPTRON, savedmodels.node("lone", "ReadFile")]
    path = savedmodels.write(folder / "reads", savedmodels.graph(nodes))

    with pytest.raises(CodeNotAllowedError, match=r"reads: its graph .*\(ReadFile\); if you"):
        inspect(path)


@needs_namespaces
@pytest.mark.parametrize(
    ("first", "reason"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 9), 1)", "Network is unreachable"),
        ("open('HOME/secret')", "No such file or directory"),
        ("import os; os.kill(PARENT, 9)", "not permitted|No such process"),
        ("import os; os.setuid(0); os.unshare", "not permitted|has no attribute"),
        ("import ctypes; ctypes.string_at(0)", "was ended by SIGSEGV"),
        ("import os; os._exit(7)", r"ended with status 7"),
        (
            "x = [bytearray(50_000_000) for _ in range(10**6)]",
            "more than 600000000 bytes of memory",
        ),
        ("import time; time.sleep(60)", "did not load within 3 s"),
    ],
    ids=["network", "home", "kill", "root", "crash", "exit", "memory", "time"],
)
def test_what_a_model_does_is_stopped_and_told(folder: Path, first: str, reason: str) -> None:
    home = folder / "home"
    (home / "secret").write_text("secret")
    first = first.replace("HOME", str(home)).replace("PARENT", str(os.getpid()))
    inspect = SandboxedInspector.of_home(home)
    inspect.timeout_s, inspect.memory_bytes = 3.0, 600_000_000
    with contextlib.closing(inspect), pytest.raises(UnsupportedModelError, match=reason):
        inspect(python_file(folder, "wild", first), allow_code=True)


def test_a_push_is_inspected_apart_and_leaves_nothing_where_it_is_refused(folder: Path) -> None:
    home = folder / "home"
    path = python_file(folder, "bomb", "x = [bytearray(50_000_000) for _ in range(10**6)]")
    inspect = SandboxedInspector.of_home(home)
    inspect.memory_bytes = 600_000_000
    with contextlib.closing(inspect):
        registry = Registry(home, inspect)
        with pytest.raises(UnsupportedModelError, match=rf"^{path}: it took more than"):
            registry.push("m", path, allow_code=True)

    assert registry.list() == []
    assert list((home / "artifacts" / "tmp").iterdir()) == []


def test_a_model_is_not_inspected_where_the_process_cannot_be_isolated(folder: Path) -> None:
    path = folder / "m.onnx"
    path.write_bytes(models.mlp())
    sandbox = Sandbox(hide=(folder / "home",), reports=folder, kernel_features=KernelFeatures)
    with (
        contextlib.closing(SandboxedInspector(sandbox)) as inspect,
        pytest.raises(FailedPreconditionError, match="allow unprivileged user namespaces"),
    ):
        inspect(path)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_an_inspection_ends_with_all_it_started_when_its_caller_leaves(
    folder: Path, how: str
) -> None:
    marker = f"headrace-{how}-{os.getpid()}"
    code = (
        "import os, subprocess, sys, time\n"
        f"command = [sys.executable, '-c', 'import time; time.sleep(600)', '{marker}']\n"
        "subprocess.Popen(command, start_new_session=True)\n"
        "time.sleep(600)"
    )
    path = python_file(folder, how, code)
    inspect, cancel = SandboxedInspector.of_home(folder / "home"), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(inspect, path, allow_code=True, cancel=cancel)
        wait_until(lambda: processes_with(marker))
        inspect.close() if how == "close" else cancel.set()
        with pytest.raises(RequestCancelledError, match="was cancelled"):
            running.result(60)

    assert processes_with(marker) == []


def test_an_endless_loop_of_a_graph_ends_when_it_is_cancelled(folder: Path) -> None:
    path = folder / "loop.onnx"
    path.write_bytes(endless_loop())
    cancel = threading.Event()
    threading.Timer(2.0, cancel.set).start()
    with pytest.raises(RequestCancelledError):
        SandboxedInspector.of_home(folder / "home")(path, cancel=cancel)


def processes_with(argument: str) -> list[int]:
    """The processes of this machine that have such an argument."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [pid for pid in pids if argument in command_of(pid)]


def wait_until(holds: Callable[[], object]) -> None:
    """Return once `holds()` is true."""
    until = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.02)


def endless_loop() -> bytes:
    """An ONNX graph whose Loop takes 2^62 steps."""
    number = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["go"], ["go_on"]),
            helper.make_node("Add", ["value", "value"], ["next"]),
        ],
        "body",
        [
            number("i", TensorProto.INT64, []),
            number("go", TensorProto.BOOL, []),
            number("value", TensorProto.FLOAT, [None]),
        ],
        [number("go_on", TensorProto.BOOL, []), number("next", TensorProto.FLOAT, [None])],
    )
    steps = helper.make_tensor("steps", TensorProto.INT64, [], [2**62])
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["steps"], value=steps),
            helper.make_node("Loop", ["steps", "", "x"], ["y"], body=body),
        ],
        "loop",
        [number("x", TensorProto.FLOAT, [None])],
        [number("y", TensorProto.FLOAT, [None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())
