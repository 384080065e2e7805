"""Models of MLflow's registry and of its runs, over a real tracking server."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.core import FailedPreconditionError, HeadraceError, NotFoundError
from headrace.core.model_uri import parse_model_uri
from headrace.registry import read_content
from headrace.sources import Downloader, open_source
from tests.mlflow.conftest import Logged
from tests.mlflow.test_folders import FLAVORS, RUNS_CODE, assert_answers_as_mlflow, serving

pytestmark = pytest.mark.mlflow


def downloaded(uri: str, environment: dict[str, str], cache: Path) -> str:
    """Return the digest of a model's content, without the file that only the client writes."""
    location = parse_model_uri(uri)
    downloader = Downloader(
        source=open_source(location, environment), location=location.location, cache=cache
    )
    with downloader.downloaded(downloader.resolve()) as path:
        return read_content(path).digest


def local_digest(model: Logged) -> str:
    (model.folder / "registered_model_meta").unlink(missing_ok=True)
    return read_content(model.folder).digest


def test_version_alias_run_and_id_name_the_same_content(
    logged: Callable[[str], Logged], environment: dict[str, str], tmp_path: Path
) -> None:
    model = logged("sklearn")
    expected = local_digest(model)
    model_id = next(
        line.removeprefix("model_id: ").strip()
        for line in (model.folder / "MLmodel").read_text().splitlines()
        if line.startswith("model_id: ")
    )
    for uri in (
        "models:/sklearn/1",
        "models:/sklearn@champion",
        f"models:/{model_id}",
        f"runs:/{model.run}/model",
    ):
        assert downloaded(uri, environment, tmp_path) == expected


@pytest.mark.parametrize(
    "uri",
    [
        "models:/sklearn/99",
        "models:/sklearn@nobody",
        "models:/none/1",
        "runs:/0123456789abcdef0123456789abcdef/model",
        f"models:/m-{'0' * 32}",
    ],
)
def test_missing_model_is_refused_with_its_name(
    uri: str, logged: Callable[[str], Logged], environment: dict[str, str]
) -> None:
    logged("sklearn")
    with pytest.raises((NotFoundError, FailedPreconditionError), match=r"sklearn|none|runs|models"):
        open_source(parse_model_uri(uri), environment).resolve()


def test_path_of_a_run_that_holds_no_model_is_refused(
    logged: Callable[[str], Logged], environment: dict[str, str]
) -> None:
    run = logged("sklearn").run
    with pytest.raises(NotFoundError):
        open_source(parse_model_uri(f"runs:/{run}/other"), environment).resolve()


@pytest.mark.parametrize("flavor", FLAVORS)
def test_version_of_the_registry_is_pushed_and_answers_what_mlflow_answers(
    flavor: str, logged: Callable[[str], Logged], environment: dict[str, str], tmp_path: Path
) -> None:
    model = logged(flavor)
    home = ["--home", str(tmp_path / "home")]
    flags = ["--allow-code"] if flavor in RUNS_CODE else []
    uri = f"models:/{flavor}@champion"

    def headrace(*arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "headrace.cli", *arguments, *home, "--json"]
        child = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=300
        )
        assert child.returncode == 0, child.stderr
        document: dict[str, Any] = json.loads(child.stdout)
        return document

    version = headrace("models", "push", "m", uri, *flags)
    again = headrace("models", "push", "m", uri, *flags)

    assert (version["source"], version["runtime"]) == (uri, "mlflow")
    assert version["runs_code"] == bool(flags)
    assert version["digest"] == local_digest(model)
    assert again["version"] == version["version"]
    with serving("m:1", *flags, *home, log=tmp_path / "log") as url:
        assert_answers_as_mlflow(f"{url}/invocations", model)


def test_unreachable_server_is_named(environment: dict[str, str]) -> None:
    elsewhere = {**environment, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    with pytest.raises(HeadraceError, match=r"127\.0\.0\.1:9"):
        open_source(parse_model_uri("models:/sklearn/1"), elsewhere).resolve()
