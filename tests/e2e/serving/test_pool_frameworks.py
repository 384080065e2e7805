"""A pool's process holds one of PyTorch and TensorFlow, whatever it is asked to host."""

import json
from pathlib import Path

import pytest

from tests import savedmodels, tabular_models
from tests.e2e.serving.pools import PoolCopy, entry, python_model, running_pool

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.torch]

INPUTS = {
    "saved": ("x", "FP32", len(savedmodels.WEIGHTS)),
    "scripted": ("x", "FP32", 5),
    "own": ("x", "FP32", 2),
    "table": ("input", "FP64", tabular_models.ROWS.shape[1]),
}
LOAD_S = 240
"""A framework is imported twice for a load, each time for seconds: by the trial and by the pool."""
LIBRARIES = {"tensorflow": "libtensorflow", "torch": "libtorch"}


def ask(copy: PoolCopy, model: str) -> int:
    """The status of the answer to one row."""
    name, datatype, width = INPUTS[model]
    tensor = {"name": name, "datatype": datatype, "shape": [1, width], "data": [0.5] * width}
    body = json.dumps({"inputs": [tensor]})
    answer = copy.client.post(f"/v2/models/{model}/infer", content=body, timeout=LOAD_S)
    return answer.status_code


def held(copy: PoolCopy) -> set[str]:
    """The frameworks whose libraries the pool's process has mapped."""
    mapped = Path(f"/proc/{copy.process.pid}/maps").read_text()
    return {name for name, library in LIBRARIES.items() if library in mapped}


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    """One model of each framework, a Python model that imports PyTorch itself, and an estimator."""
    from tests.torch_models import scripted_perceptron  # noqa: PLC0415  # imports PyTorch

    return {
        "saved": savedmodels.write(tmp_path / "saved"),
        "scripted": scripted_perceptron(tmp_path).path,
        "table": tabular_models.sklearn(tmp_path, "regression").path,
        "own": python_model(tmp_path, "own", first="import torch\n"),
    }


@pytest.mark.parametrize(
    ("first", "others", "framework"),
    [
        ("saved", ("scripted", "own"), "tensorflow"),
        ("scripted", ("saved",), "torch"),
        ("own", ("saved",), "torch"),
    ],
)
def test_models_of_a_second_framework_are_refused_and_the_others_answer(
    tmp_path: Path, models: dict[str, Path], first: str, others: tuple[str, ...], framework: str
) -> None:
    with running_pool(tmp_path, load_timeout_s=LOAD_S) as copy:
        copy.declare(*(entry(name, path) for name, path in models.items()))
        statuses = [ask(copy, name) for name in (first, *others, first)]
        reasons = [copy.model(name).reason for name in others]
        libraries = held(copy)

    assert statuses == [200, *(503 for _ in others), 200]
    assert all("cannot be loaded in a process that holds" in reason for reason in reasons), reasons
    assert all("another pool" in reason for reason in reasons)
    assert libraries == {framework}
    assert copy.process.returncode == 0


def test_estimators_are_hosted_beside_savedmodels_and_bring_no_other_framework(
    tmp_path: Path, models: dict[str, Path]
) -> None:
    with running_pool(tmp_path, load_timeout_s=LOAD_S) as copy:
        copy.declare(*(entry(name, models[name]) for name in ("table", "saved")))
        statuses = [ask(copy, name) for name in ("table", "saved", "table")]
        libraries = held(copy)

    assert statuses == [200, 200, 200], copy.log_text()
    assert libraries == {"tensorflow"}
