"""Which is the fastest way to run trees: their own library, treelite, or ONNX Runtime?

python -m bench.trees

Not one of the suites: nothing is served, one thread calls the library. treelite and onnxmltools are
measured where they are installed (`pip install treelite onnxmltools`).
"""

import importlib
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime as ort
from sklearn import datasets

from headrace.core import Array
from headrace.runtimes import load_model

ROWS: Final = (1, 32, 256)
_ROUNDS: Final = 100
_SECONDS: Final = 1.0
TREES: Final = 100

Run = Callable[[Array], Array]
Way = tuple[str, Run]


def main() -> None:
    """Print a table: microseconds at the median, and how far from the library's own answer."""
    warnings.simplefilter("ignore")
    print("| model | way | " + " | ".join(f"{n} rows" for n in ROWS) + " | largest difference |")
    print("|---|---|" + "---|" * len(ROWS) + "---|")
    with tempfile.TemporaryDirectory() as folder:
        for data in ("breast_cancer", "digits"):
            x, y = getattr(datasets, f"load_{data}")(return_X_y=True)
            for library, ways in (
                ("XGBoost", _xgboost),
                ("LightGBM", _lightgbm),
                ("CatBoost", _catboost),
            ):
                _print(f"{library}, {data}", list(ways(Path(folder), x, y)), x)


def _print(model: str, ways: list[Way], x: Array) -> None:
    reference = ways[0][1](_tiled(x, max(ROWS)))
    for name, run in ways:
        times = [f"{_median_us(run, _tiled(x, rows)):.0f}" for rows in ROWS]
        answer = run(_tiled(x, max(ROWS)))
        difference = float(np.abs(answer.reshape(reference.shape) - reference).max())
        print(f"| {model} | {name} | {' | '.join(times)} | {difference:.0e} |", flush=True)


def _tiled(x: Array, rows: int) -> Array:
    return np.ascontiguousarray(np.resize(x, (rows, x.shape[1])).astype(np.float32))


def _median_us(run: Run, rows: Array) -> float:
    run(rows)
    taken: list[float] = []
    until = time.perf_counter() + _SECONDS
    while len(taken) < _ROUNDS or time.perf_counter() < until:
        started = time.perf_counter()
        run(rows)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken) * 1e6


def _native(path: Path, dtype: type) -> Way:
    model = load_model(path)

    def run(rows: Array) -> Array:
        return model.run({"input": rows.astype(dtype, copy=False)}, ["probabilities"])[
            "probabilities"
        ]

    return "this runtime", run


def _xgboost(folder: Path, x: Array, y: Array) -> Iterator[Way]:
    xgb = importlib.import_module("xgboost")
    model = xgb.XGBClassifier(n_estimators=TREES, max_depth=6, n_jobs=1).fit(x, y)
    path = folder / "model.json"
    model.save_model(path)
    yield _native(path, np.float32)
    yield from _treelite("load_xgboost_model", path, np.float32)
    yield from _converted("convert_xgboost", model, x.shape[1])


def _lightgbm(folder: Path, x: Array, y: Array) -> Iterator[Way]:
    lgb = importlib.import_module("lightgbm")
    model = lgb.LGBMClassifier(n_estimators=TREES, n_jobs=1, verbose=-1).fit(x, y)
    path = folder / "model.txt"
    model.booster_.save_model(path)
    yield _native(path, np.float64)
    yield from _treelite("load_lightgbm_model", path, np.float64)
    yield from _converted("convert_lightgbm", model, x.shape[1])


def _catboost(folder: Path, x: Array, y: Array) -> Iterator[Way]:
    """Treelite reads no files of CatBoost's, and CatBoost exports to ONNX by itself."""
    cb = importlib.import_module("catboost")
    model = cb.CatBoostClassifier(iterations=TREES, verbose=0, allow_writing_files=False)
    model.fit(x, y).save_model(str(folder / "model.cbm"))
    yield _native(folder / "model.cbm", np.float32)
    model.save_model(str(folder / "model.onnx"), format="onnx")
    yield "ONNX Runtime", _onnx((folder / "model.onnx").read_bytes())


def _treelite(load: str, path: Path, dtype: type) -> Iterator[Way]:
    try:
        treelite = importlib.import_module("treelite")
    except ImportError:
        return
    trees = getattr(treelite.frontend, load)(path)

    def run(rows: Array) -> Array:
        answer: Array = treelite.gtil.predict(trees, rows.astype(dtype, copy=False), nthread=1)
        return _both(answer.reshape(len(rows), -1))

    yield "treelite", run


def _converted(convert: str, model: Any, features: int) -> Iterator[Way]:  # noqa: ANN401  # ships no types
    try:
        tools = importlib.import_module("onnxmltools")
        types = importlib.import_module("onnxmltools.convert.common.data_types")
        inputs = [("input", types.FloatTensorType([None, features]))]
        settings = {"zipmap": False} if convert == "convert_lightgbm" else {}
        onnx = getattr(tools, convert)(model, initial_types=inputs, target_opset=15, **settings)
    except Exception as error:  # noqa: BLE001  # converters fail in many ways, and lag behind
        print(f"<!-- {convert}: {type(error).__name__}: {error} -->")
        return
    yield "ONNX Runtime", _onnx(onnx.SerializeToString())


def _onnx(model: bytes) -> Run:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    (name,) = (spec.name for spec in session.get_inputs())

    def run(rows: Array) -> Array:
        answer = session.run(None, {name: rows})[1]
        if isinstance(answer, list):  # CatBoost's export gives a dictionary for each row
            return np.array([list(one.values()) for one in answer])
        return np.asarray(answer)

    return run


def _both(answer: Array) -> Array:
    return np.hstack((1 - answer, answer)) if answer.shape[1] == 1 else answer


if __name__ == "__main__":
    main()
