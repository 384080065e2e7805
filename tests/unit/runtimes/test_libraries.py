"""A runtime whose library is absent is said to lack it, and knows its files all the same."""

import importlib.util
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError, UnsupportedModelError
from headrace.runtimes import detect_runtime, get_runtime, inspect_model, libraries, usable_runtimes
from headrace.runtimes.libraries import missing_library
from tests import tabular_models


@pytest.fixture
def without_xgboost(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the package were not installed: nothing may import it to find that out."""
    real = importlib.util.find_spec

    def find(name: str) -> ModuleSpec | None:
        return None if name == "xgboost" else real(name)

    monkeypatch.setattr(libraries, "find_spec", find)


@pytest.mark.usefixtures("without_xgboost")
def test_a_model_whose_library_is_absent_says_what_to_install(tmp_path: Path) -> None:
    path = tabular_models.xgboost(tmp_path, "binary").path

    assert detect_runtime(path).name == "xgboost"
    with pytest.raises(
        FailedPreconditionError,
        match=r"binary\.json is a model of the runtime 'xgboost', whose package 'xgboost' is not "
        r"installed: pip install 'headrace\[xgboost\]'",
    ):
        inspect_model(path)


@pytest.mark.usefixtures("without_xgboost")
def test_a_runtime_without_its_library_is_not_one_that_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")

    assert "xgboost" not in usable_runtimes()
    with pytest.raises(InvalidArgumentError, match=r"'xgboost' lacks 'xgboost' \(pip install"):
        get_runtime("nobody")
    with pytest.raises(UnsupportedModelError, match=r"'xgboost' lacks 'xgboost' \(pip install"):
        inspect_model(tmp_path / "notes.txt")


def test_a_plug_in_that_names_no_library_needs_none() -> None:
    class Mine:
        name = "mine"

    assert missing_library(Mine()) == ""  # type: ignore[arg-type]  # as little as a plug-in may have


def test_a_package_inside_another_is_looked_up_by_the_outer_one() -> None:
    class Mine:
        libraries = ("no_such_package_at_all.inner",)

    assert missing_library(Mine()) == "no_such_package_at_all.inner"  # type: ignore[arg-type]  # as above
