"""A process imports PyTorch or TensorFlow, never both: shown with packages of these names."""

import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtimes import get_runtime
from headrace.runtimes.libraries import FRAMEWORKS, framework_of


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A directory with both packages; beside them one that imports PyTorch only if it can."""
    for name in FRAMEWORKS:
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
        (tmp_path / name / "nn.py").touch()
    (tmp_path / "tolerant.py").write_text("try:\n    import torch\nexcept ImportError:\n    pass\n")
    return tmp_path


def run(folder: Path, *lines: str) -> str:
    """What a process prints in which both packages can be imported, after `lines`."""
    code = [
        "import sys, threading",
        "from importlib.util import find_spec",
        "from headrace.core import HeadraceError",
        "from headrace.optimize.sources import import_converter",
        "from headrace.runtimes.libraries import *",
        "from headrace.runtimes.tables.tabular import import_library",
        *lines,
        "print(*sorted(FRAMEWORKS.keys() & sys.modules.keys()))",
    ]
    done = subprocess.run(  # noqa: S603  # ourselves
        [sys.executable, "-c", "\n".join(code)],
        env={"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused(line: str) -> list[str]:
    return ["try:", f"    {line}", "except HeadraceError as error:", "    print(error)"]


@pytest.mark.parametrize(("first", "second"), [("torch", "tensorflow"), ("tensorflow", "torch")])
@pytest.mark.parametrize("how", ["import_library({!r}, 'an-extra')", "import_converter({!r})"])
def test_a_second_framework_is_refused_with_the_remedy(
    planted: Path, first: str, second: str, how: str
) -> None:
    error, held = run(planted, how.format(first), *refused(how.format(second))).splitlines()

    assert error.startswith(
        f"{FRAMEWORKS[second]} cannot be loaded in a process that holds {FRAMEWORKS[first]}"
    )
    assert "separate processes" in error
    assert held == first


def test_a_library_that_can_do_without_goes_on_without(planted: Path) -> None:
    assert run(planted, "import_library('tensorflow', '')", "import tolerant") == "tensorflow"
    assert run(planted, "import tolerant") == "torch"


def test_a_framework_that_somebody_imported_unasked_is_the_only_one_too(planted: Path) -> None:
    output = run(planted, "import tolerant", *refused("import_library('tensorflow', '')"))

    assert output.startswith("TensorFlow cannot be loaded in a process that holds PyTorch")
    assert output.endswith("\ntorch")


def test_frameworks_are_hidden_from_a_library_that_does_not_need_them(planted: Path) -> None:
    hide = ["with without_frameworks():", "    import tolerant"]

    assert run(planted, *hide) == ""
    assert run(planted, *hide, "import torch.nn") == "torch"
    assert run(planted, *hide, "import_library('tensorflow', '')") == "tensorflow"
    assert run(planted, "import torch", *hide) == "torch"


def test_they_are_hidden_from_the_thread_that_asks_for_it_alone(planted: Path) -> None:
    other = "    other = threading.Thread(target=lambda: __import__('torch'))"

    assert run(
        planted, "with without_frameworks():", other, "    other.start()", "    other.join()"
    )


def test_what_is_refused_still_counts_as_installed(planted: Path) -> None:
    look = "print(find_spec('torch') is not None)"

    assert run(planted, "import_library('tensorflow', '')", look) == "True\ntensorflow"
    (planted / "torch" / "nn.py").unlink()
    (planted / "torch" / "__init__.py").unlink()
    (planted / "torch").rmdir()
    assert run(planted, "import_library('tensorflow', '')", look).startswith("False")


def test_runtimes_say_which_framework_they_need(
    planted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(planted)

    frameworks = {name: framework_of(get_runtime(name)) for name in ("savedmodel", "torchscript")}
    none = {framework_of(get_runtime(name)) for name in ("onnx", "sklearn", "tflite", "python")}

    assert frameworks == {"savedmodel": "tensorflow", "torchscript": "torch"}
    assert framework_of(get_runtime("torch_export")) == "torch"
    assert none == {""}
