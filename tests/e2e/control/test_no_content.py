"""No word of a file that is no model leaves the process that inspects it."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.control.sandboxed.run import SandboxedInspector
from headrace.core import HeadraceError, UnsupportedModelError
from headrace.registry import Registry
from tests.secret_files import TEXTS, leaked, secret_contents, write_secret

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NAMES = {
    "python": "admin-token",
    "onnx": "admin-token",
    "": "model.py",
    "pipeline": "pipeline.yaml",
}
"""By runtime that is asked for: the name of a file; the first two are the reproduction."""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        (Path(directory) / "home").mkdir()
        yield Path(directory)


@pytest.fixture(scope="module")
def inspect(folder: Path) -> Iterator[SandboxedInspector]:
    with contextlib.closing(SandboxedInspector.of_home(folder / "home")) as inspect:
        yield inspect


@pytest.mark.parametrize(
    "case",
    [(name, 8) for name in NAMES]
    + [pytest.param((name, 1), marks=pytest.mark.long) for name in NAMES],
    ids=lambda case: f"{case[0]}-{case[1]}",
)
def test_a_push_of_a_file_that_is_no_model_quotes_it_nowhere(
    inspect: SandboxedInspector,
    folder: Path,
    case: tuple[str, int],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """Every `step`-th form of content: the unit tests of the runtimes read all of them."""
    runtime, step = case
    caplog.set_level(logging.DEBUG)
    registry = Registry(folder / "home", inspect)
    contents = {form: content for form, content in secret_contents() if form in TEXTS}
    outputs = {}
    for number, (form, content) in list(enumerate(contents.items()))[::step]:
        path = write_secret(folder / f"{runtime}-{step}-{number}", NAMES[runtime], content)
        with pytest.raises(HeadraceError) as refused:
            registry.push("m", path, runtime=runtime, allow_code=True)
        outputs[form] = str(refused.value)
    everything = {**outputs, "log": caplog.text, "streams": "".join(capfd.readouterr())}

    assert {form: text for form, text in everything.items() if leaked(text)} == {}
    assert registry.list() == []


def test_a_refusal_still_names_the_file_the_kind_of_error_and_the_line(
    inspect: SandboxedInspector, folder: Path
) -> None:
    path = write_secret(folder / "line", "model.py", b"x = 1\nimport no_such_module\n")

    with pytest.raises(UnsupportedModelError, match=r"model\.py, line 2") as refused:
        inspect(path, allow_code=True)
    assert "cannot be run: ModuleNotFoundError" in str(refused.value)
