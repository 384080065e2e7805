"""`headrace.serve`: models of a Python program in a child process."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder

import headrace
from headrace.core import InvalidArgumentError, UnavailableError
from headrace.testing import models

pytestmark = [pytest.mark.e2e, pytest.mark.slow]
FEATURES, TARGETS = load_iris(return_X_y=True)
GONE_WITHIN_S = 30.0


@pytest.fixture(scope="module")
def mlp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "mlp.onnx"
    path.write_bytes(models.mlp())
    return path


def test_a_file_is_served_until_the_block_ends(mlp: Path) -> None:
    rows = np.ones((2, 32), np.float32)

    with headrace.serve(mlp) as server:
        by_position = server.infer(rows).outputs["prob"]
        by_name = server.infer({"input": rows}, outputs=["prob"]).outputs["prob"]
        with headrace.Client(server.url) as client:
            by_client = client.infer(server.name, {"input": rows}).outputs["prob"]
        with pytest.raises(InvalidArgumentError, match=r"Expected \[-1,32\]"):
            server.infer(np.ones((2, 31), np.float32))
        assert f"{server.url}/docs" in repr(server)
        folder = server.log_path.parent
        assert folder.is_dir()

    np.testing.assert_array_equal(by_position, by_name)
    np.testing.assert_array_equal(by_position, by_client)
    assert (server.name, server.is_running, folder.exists()) == ("mlp", False, False)
    with pytest.raises(UnavailableError, match="'mlp' has ended"):
        server.infer(rows)
    server.stop()


def test_an_estimator_predicts_as_in_the_program() -> None:
    estimator = LogisticRegression(max_iter=1000).fit(FEATURES, TARGETS)

    with headrace.serve(estimator, name="iris") as server:
        served = server.infer(FEATURES).outputs

    np.testing.assert_array_equal(served["label"], estimator.predict(FEATURES))
    np.testing.assert_allclose(served["probabilities"], estimator.predict_proba(FEATURES))


def test_a_pipeline_on_data_frames_takes_a_data_frame() -> None:
    frame = pd.DataFrame({"width": [0.1, 0.4, 1.9, 2.3] * 5, "color": list("abba") * 5})
    labels = [0, 0, 1, 1] * 5
    columns = ColumnTransformer([("color", OneHotEncoder(), ["color"])], remainder="passthrough")
    pipeline = make_pipeline(columns, LogisticRegression()).fit(frame, labels)

    with headrace.serve(pipeline) as server:
        served = server.infer(frame).outputs["label"]

    np.testing.assert_array_equal(served, pipeline.predict(frame))


@pytest.mark.parametrize("library", ["xgboost", "lightgbm", "catboost", "onnx"])
def test_objects_of_other_libraries_are_served(library: str, mlp: Path) -> None:
    rows, targets = load_breast_cancer(return_X_y=True)
    model, expected = OBJECTS[library](rows, targets, mlp)

    with headrace.serve(model) as server:
        inputs = np.ones((2, 32), np.float32) if library == "onnx" else rows.astype(np.float32)
        outputs = server.infer(inputs).outputs

    if expected is not None:
        served = outputs["probabilities"] if "probabilities" in outputs else outputs["prediction"]
        table: Any = np.asarray(served).reshape(len(targets), -1)
        np.testing.assert_allclose(table[:, -1], expected, atol=1e-5)


def xgboost_model(rows: Any, targets: Any, _mlp: Path) -> tuple[object, Any]:
    import xgboost  # noqa: PLC0415  # slow to load

    model = xgboost.XGBClassifier(n_estimators=5).fit(rows.astype(np.float32), targets)
    return model, model.predict_proba(rows.astype(np.float32))[:, 1]


def lightgbm_model(rows: Any, targets: Any, _mlp: Path) -> tuple[object, Any]:
    import lightgbm  # noqa: PLC0415  # as above

    model = lightgbm.LGBMClassifier(n_estimators=5, verbose=-1).fit(rows, targets)
    expected: Any = model.predict_proba(rows.astype(np.float32))
    return model, expected[:, 1]


def catboost_model(rows: Any, targets: Any, _mlp: Path) -> tuple[object, Any]:
    import catboost  # noqa: PLC0415  # as above

    model = catboost.CatBoostClassifier(iterations=5, verbose=False, allow_writing_files=False)
    model.fit(rows.astype(np.float32), targets)
    return model, model.predict_proba(rows.astype(np.float32))[:, 1]


def onnx_model(_rows: Any, _targets: Any, mlp: Path) -> tuple[object, Any]:
    import onnx  # noqa: PLC0415  # as above

    return onnx.load(mlp), None


OBJECTS = {
    "xgboost": xgboost_model,
    "lightgbm": lightgbm_model,
    "catboost": catboost_model,
    "onnx": onnx_model,
}

SCRIPT = """\
from __future__ import annotations

import asyncio

import numpy as np

import headrace

FACTOR = 3.0


def scaled(value: float) -> float:
    return FACTOR * value


@headrace.model(example={"text": ["a b"]})
def words(text: str) -> int:
    return len(text.split())


class Totals:
    inputs = {"x": ("FP32", [-1, 2])}
    outputs = {"total": ("FP32", [-1])}
    batched = True

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"total": inputs["x"].sum(axis=1)}


async def main() -> None:
    with headrace.serve(scaled) as server:
        print(server.name, server.infer([1.0, 2.0]).outputs["output"].tolist())
    with headrace.serve(words) as server:
        print(server.name, server.infer(["one two", "one"]).outputs["output"].tolist())
    with headrace.serve(Totals) as server:
        rows = np.array([[1, 2], [3, 4]], np.float32)
        print(server.name, server.infer(rows).outputs["total"].tolist())


asyncio.run(main())
"""


def test_functions_and_classes_of_a_script_are_served_beside_its_event_loop(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )

    assert done.stdout.splitlines() == [
        "scaled [3.0, 6.0]",
        "words [2, 1]",
        "Totals [3.0, 7.0]",
    ], done.stderr


ABANDON = """\
import sys, time
import headrace
server = headrace.serve(sys.argv[1])
print(server.url, server.log_path.parent, flush=True)
{end}
"""


@pytest.mark.parametrize(
    ("end", "signum"), [("", None), ("raise SystemExit(3)", None), ("time.sleep(600)", "SIGKILL")]
)
def test_a_server_ends_with_the_interpreter(end: str, signum: str | None, mlp: Path) -> None:
    code = ABANDON.format(end=end)
    command = [sys.executable, "-c", code, str(mlp)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        url, folder = program.stdout.readline().split()
        if signum is not None:
            program.send_signal(signal.Signals[signum])

    until = time.monotonic() + GONE_WITHIN_S
    while is_alive(url):
        assert time.monotonic() < until, "the server outlives its program"
        time.sleep(0.05)
    if signum is None:
        assert not Path(folder).exists()


def is_alive(url: str) -> bool:
    with headrace.Client(url, timeout_s=5) as client:
        return client.live()


def test_an_error_of_the_start_is_raised_with_the_message_of_the_replica(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    (tmp_path / "wrong.py").write_text("def predict(x: float) -> float:\n    return x.missing\n")

    for target, message in (
        ("text.onnx", "text.onnx: is text, not ONNX"),
        ("none.onnx", "no file or directory"),
        ("wrong.py", r"pass `allow_code=True`"),
    ):
        with pytest.raises(headrace.ServeError, match=message):
            headrace.serve(tmp_path / target)


def test_ports_of_other_processes_in_the_environment_do_not_apply(
    mlp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_GRPC_PORT", "1")  # of a gateway
    monkeypatch.setenv("HEADRACE_HOST", "192.0.2.1")

    with headrace.serve(mlp) as first, headrace.serve(mlp) as second:
        assert first.url != second.url
        assert first.client.ready()
        assert second.client.ready()


def test_objects_that_cannot_be_served_are_refused_at_once() -> None:
    with pytest.raises(InvalidArgumentError, match=r"builtins\.dict cannot be served"):
        headrace.serve({"a": 1})


@pytest.mark.anyio
async def test_the_asynchronous_client_calls_a_server(mlp: Path) -> None:
    with headrace.serve(mlp) as server:
        async with headrace.AsyncClient(server.url) as client:
            rows = {"input": np.ones((1, 32), np.float32)}
            calls = (client.infer(server.name, rows) for _ in range(4))
            answers = await asyncio.gather(*calls)

    assert [answer.outputs["prob"].shape[0] for answer in answers] == [1] * 4


def test_importing_headrace_loads_nothing_else() -> None:
    code = "import sys, headrace; print(sorted(m for m in sys.modules if m.startswith('headrace')))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ
    )

    assert done.stdout.strip() == "['headrace']"
