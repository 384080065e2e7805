"""Models as people have them, trained on scikit-learn's data and saved by their own frameworks.

Each maker writes a model into a folder and returns the argument of `headrace up`, a request, and
what the framework itself answers to it in this process.
"""

# ruff: noqa: PLC0415  # each maker imports its framework, and the collection of tests none

import json
import pickle  # noqa: TID251  # what people have
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Tensors
from tests.sklearn_models import data
from tests.tabular_models import library

ROWS: Final = 20
ALLOW: Final = ("--allow-code",)


@dataclass(frozen=True, slots=True, kw_only=True)
class CommonModel:
    """Model that one command serves."""

    target: Path | str
    """Argument of `headrace up`; a text is a stored version, which `pushed` becomes."""
    inputs: Tensors
    expected: Tensors
    flags: tuple[str, ...] = ()
    endpoint: str = "model"
    tolerance: float = 0.0
    """Largest difference, relative to 1 or the value; 0 for equal bits."""
    pushed: Path | None = None


def _request(rows: Array, name: str = "input") -> Tensors:
    return {name: rows}


def _texts(values: Any) -> Array:  # noqa: ANN401  # any sequence of texts
    array = np.empty(len(values), np.object_)
    array[:] = [str(value).encode() for value in values]
    return array


def _answers(estimator: Any, rows: Any) -> Tensors:  # noqa: ANN401  # any estimator, any table
    """Return what an estimator of scikit-learn's interface answers, by Headrace's names."""
    if not hasattr(estimator, "predict"):
        return {"transformed": np.asarray(estimator.transform(rows))}
    predicted = np.asarray(estimator.predict(rows)).reshape(len(rows), -1)
    if not hasattr(estimator, "classes_"):
        return {"prediction": predicted[:, 0]}
    labels = predicted[:, 0]
    return {
        "label": _texts(labels) if labels.dtype.kind in "OU" else labels,
        "probabilities": estimator.predict_proba(rows),
    }


def onnx(folder: Path) -> CommonModel:
    """Logistic regression on digits, converted by skl2onnx."""
    from skl2onnx import to_onnx
    from sklearn.linear_model import LogisticRegression

    rows, labels = data("digits")
    model = LogisticRegression(max_iter=3000).fit(rows, labels)
    path = folder / "digits.onnx"
    sample = rows[:1].astype(np.float32)
    path.write_bytes(to_onnx(model, sample, options={"zipmap": False}).SerializeToString())
    expected = {"probabilities": model.predict_proba(rows[:ROWS])}
    inputs = _request(rows[:ROWS].astype(np.float32), "X")
    return CommonModel(target=path, inputs=inputs, expected=expected, tolerance=1e-5)


def _trees(
    package: str, kind: str, name: str, save: Callable[[Any, Path], object]
) -> Callable[[Path], CommonModel]:
    """Return the maker of a file of trees; `kind` is a class of the library."""

    def make(folder: Path) -> CommonModel:
        module: Any = library(package, package)
        rows, labels = data("diabetes" if kind.endswith("Regressor") else "wine")
        is_double = package == "lightgbm" or name.endswith((".joblib", ".pkl"))
        rows = rows.astype(np.float64 if is_double else np.float32)
        quiet = {
            "xgboost": {"n_jobs": 1},
            "lightgbm": {"verbose": -1, "n_jobs": 1},
            "catboost": {"verbose": 0, "allow_writing_files": False},
        }[package]
        model = getattr(module, kind)(n_estimators=20, **quiet).fit(rows, labels)
        save(model, folder / name)
        return CommonModel(
            target=folder / name,
            inputs=_request(rows[:ROWS]),
            expected=_answers(model, rows[:ROWS]),
            flags=ALLOW if name.endswith((".joblib", ".pkl")) else (),
        )

    return make


def _dump(model: object, path: Path) -> None:
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(model))
    elif path.suffix == ".skops":
        library("skops.io", "sklearn").dump(model, path)
    else:
        import joblib

        joblib.dump(model, path)


def _estimator(
    build: Callable[[], Any], name: str, source: str = "breast_cancer"
) -> Callable[[Path], CommonModel]:
    """Return the maker of a file of scikit-learn."""

    def make(folder: Path) -> CommonModel:
        rows, labels = data(source)
        rows = rows.astype(np.float64)
        model = build().fit(rows, labels)
        _dump(model, folder / name)
        return CommonModel(
            target=folder / name,
            inputs=_request(rows[:ROWS]),
            expected=_answers(model, rows[:ROWS]),
            flags=() if name.endswith(".skops") else ALLOW,
        )

    return make


def _forest() -> Any:  # noqa: ANN401  # ships no types
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(20, random_state=0)


def _network() -> Any:  # noqa: ANN401  # ships no types
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), MLPClassifier(max_iter=2000, random_state=0))


def _histograms() -> Any:  # noqa: ANN401  # ships no types
    from sklearn.ensemble import HistGradientBoostingRegressor

    return HistGradientBoostingRegressor(max_iter=20)


def _components() -> Any:  # noqa: ANN401  # ships no types
    from sklearn.decomposition import PCA
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), PCA(4))


def data_frame(folder: Path) -> CommonModel:
    """Pipeline that selects columns of a data frame by name, of which one is text."""
    from sklearn.compose import ColumnTransformer
    from sklearn.datasets import load_wine
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    wine = load_wine(as_frame=True)
    frame = wine.data[["alcohol", "ash", "proline"]].copy()
    frame["colour"] = np.where(wine.data["hue"] > 1, "purple", "red")
    columns = ColumnTransformer(
        [
            (
                "numbers",
                make_pipeline(SimpleImputer(), StandardScaler()),
                ["alcohol", "ash", "proline"],
            ),
            ("words", OneHotEncoder(handle_unknown="ignore"), ["colour"]),
        ]
    )
    names = np.array(wine.target_names)[wine.target]
    model = make_pipeline(columns, RandomForestClassifier(20, random_state=0)).fit(frame, names)
    _dump(model, folder / "wine.joblib")
    some = frame.iloc[::9]
    inputs: Tensors = {
        name: _texts(some[name]) if name == "colour" else some[name].to_numpy() for name in frame
    }
    return CommonModel(
        target=folder / "wine.joblib",
        inputs=inputs,
        expected=_answers(model, some),
        flags=ALLOW,
    )


def texts(folder: Path) -> CommonModel:
    """Classifier of texts: sentences of the descriptions of scikit-learn's data sets."""
    from sklearn import datasets
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    sentences, topics = [], []
    for name in ("iris", "wine", "breast_cancer", "diabetes"):
        described = getattr(datasets, f"load_{name}")().DESCR.split(".")
        some = [" ".join(part.split()) for part in described if len(part.split()) > 3]
        sentences += some
        topics += [name] * len(some)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(sentences, topics)
    _dump(model, folder / "topics.joblib")
    return CommonModel(
        target=folder / "topics.joblib",
        inputs=_request(_texts(sentences[:ROWS])),
        expected=_answers(model, sentences[:ROWS]),
        flags=ALLOW,
    )


def openvino(folder: Path) -> CommonModel:
    """Folder with the `.xml` and `.bin` of a neural network that OpenVINO converted."""
    import openvino as ov
    from skl2onnx import to_onnx
    from sklearn.neural_network import MLPRegressor

    rows, amounts = data("diabetes")
    rows = rows.astype(np.float32)
    network = MLPRegressor(max_iter=1000, random_state=0, tol=1.0).fit(rows, amounts)
    source = folder / "source.onnx"
    source.write_bytes(to_onnx(network, rows[:1]).SerializeToString())
    converted = ov.convert_model(source)
    target = folder / "sugar"
    target.mkdir()
    ov.save_model(converted, target / "sugar.xml", compress_to_fp16=False)
    exact = {"INFERENCE_PRECISION_HINT": "f32"}  # bfloat16 otherwise, where the processor has it
    results = ov.compile_model(converted, "CPU", exact)(rows[:ROWS])
    return CommonModel(
        target=target,
        inputs=_request(rows[:ROWS], "X"),
        expected={"variable": results["variable"]},
        tolerance=1e-5,
    )


_CLASS: Final = """
import joblib
import numpy as np


class Cancer:
    inputs = {"cells": ("FP64", [-1, 30])}
    outputs = {"malignant": ("FP64", [-1])}

    def load(self, path):
        self.model = joblib.load(path / "weights.joblib")

    def infer(self, inputs):
        return {"malignant": self.model.predict_proba(inputs["cells"])[:, 0]}
"""


def python_class(folder: Path) -> CommonModel:
    """Folder with `model.py` and the file that its class loads."""
    rows, labels = data("breast_cancer")
    model = _forest().fit(rows, labels)
    target = folder / "cancer"
    target.mkdir()
    _dump(model, target / "weights.joblib")
    (target / "model.py").write_text(_CLASS)
    return CommonModel(
        target=target,
        inputs={"cells": rows[:ROWS].astype(np.float64)},
        expected={"malignant": model.predict_proba(rows[:ROWS])[:, 0]},
        flags=ALLOW,
    )


_FUNCTION: Final = '''
from sklearn.datasets import load_iris
from sklearn.neighbors import KNeighborsClassifier

iris = load_iris()
model = KNeighborsClassifier().fit(iris.data, iris.target)


def predict(sepal: list[float], petal: list[float]) -> str:
    """Return the name of a flower's species."""
    return str(iris.target_names[model.predict([sepal + petal])[0]])
'''


def python_function(folder: Path) -> CommonModel:
    """File with a function that has type hints."""
    from sklearn.datasets import load_iris
    from sklearn.neighbors import KNeighborsClassifier

    (folder / "flower.py").write_text(_FUNCTION)
    iris = load_iris()
    rows = iris.data[::8]
    expected = iris.target_names[KNeighborsClassifier().fit(iris.data, iris.target).predict(rows)]
    return CommonModel(
        target=folder / "flower.py",
        inputs={"sepal": rows[:, :2], "petal": rows[:, 2:]},
        expected={"output": _texts(expected)},
        flags=ALLOW,
    )


def _mlserver(package: str) -> Callable[[Path], CommonModel]:
    """Return the maker of a folder of MLServer."""
    implementation, file, make = {
        "sklearn": (
            "mlserver_sklearn.SKLearnModel",
            "model.joblib",
            _estimator(_forest, "model.joblib"),
        ),
        "xgboost": (
            "mlserver_xgboost.XGBoostModel",
            "model.bst",
            _trees("xgboost", "XGBClassifier", "model.ubj", lambda m, p: m.save_model(p)),
        ),
    }[package]

    def made(folder: Path) -> CommonModel:
        source = make(folder)
        (rows,) = source.inputs.values()
        target = folder / "cells"
        target.mkdir()
        Path(source.target).rename(target / file)
        settings = {
            "name": "cells",
            "implementation": implementation,
            "parameters": {"uri": f"./{file}"},
            "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, rows.shape[1]]}],
        }
        (target / "model-settings.json").write_text(json.dumps(settings))
        expected = {
            "predict": source.expected["label"],
            "predict_proba": source.expected["probabilities"],
        }
        rows = rows.astype(np.float32)
        if package == "sklearn":
            import joblib

            forest = joblib.load(target / file)
            expected = {
                "predict": forest.predict(rows),
                "predict_proba": forest.predict_proba(rows),
            }
        return CommonModel(target=target, inputs={"x": rows}, expected=expected, flags=source.flags)

    return made


def triton(folder: Path) -> CommonModel:
    """Model repository in Triton's layout."""
    source = onnx(folder)
    version = folder / "repository" / "digits" / "1"
    version.mkdir(parents=True)
    Path(source.target).rename(version / "model.onnx")
    (version.parent / "config.pbtxt").write_text(
        'platform: "onnxruntime_onnx"\nmax_batch_size: 32\n'
    )
    return CommonModel(
        target=folder / "repository",
        endpoint="digits",
        inputs=source.inputs,
        expected=source.expected,
        tolerance=source.tolerance,
    )


def stored(folder: Path) -> CommonModel:
    """Version of the registry, which was pushed before."""
    source = _estimator(_forest, "forest.skops")(folder)
    return CommonModel(
        target="forest:1",
        pushed=Path(source.target),
        endpoint="forest",
        inputs=source.inputs,
        expected=source.expected,
    )


def _digits_network() -> tuple[Any, Any, Array]:
    """Return PyTorch, a trained network on digits, and rows to ask for."""
    torch: Any = library("torch", "torch")
    rows, labels = data("digits")
    rows = (rows / 16).astype(np.float32)
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10), torch.nn.Softmax(dim=1)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    inputs, targets = torch.from_numpy(rows), torch.from_numpy(labels.astype(np.int64))
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.nll_loss(torch.log(network(inputs)), targets).backward()
        optimizer.step()
    return torch, network.eval(), rows[:ROWS]


def torchscript(folder: Path) -> CommonModel:
    """Traced module of PyTorch."""
    torch, network, rows = _digits_network()
    from tests.torch_models import answered, trace

    saved = trace(folder / "digits.pt", network, torch.from_numpy(rows))
    return CommonModel(
        target=saved.path,
        inputs=_request(rows),
        expected={"output": answered(network, rows)},
        flags=ALLOW,
        tolerance=1e-6,
    )


def torch_export(folder: Path) -> CommonModel:
    """Exported program of PyTorch."""
    torch, network, rows = _digits_network()
    from tests.torch_models import answered, export

    dynamic = {"dynamic_shapes": ({0: torch.export.Dim("rows")},)}
    saved = export(folder / "digits.pt2", network, torch.from_numpy(rows), **dynamic)
    return CommonModel(
        target=saved.path,
        inputs=_request(rows),
        expected={"output": answered(network, rows)},
        flags=ALLOW,
        tolerance=1e-6,
    )


def _keras() -> tuple[Any, Any, Array]:
    """Return TensorFlow, a trained network on digits, and rows to ask for."""
    from tests.savedmodels import tensorflow

    framework: Any = tensorflow()
    rows, labels = data("digits")
    rows = (rows / 16).astype(np.float32)
    keras = framework.keras
    keras.utils.set_random_seed(0)
    network = keras.Sequential(
        [
            keras.layers.Input((64,), name="pixels"),
            keras.layers.Dense(32, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    network.compile("adam", "sparse_categorical_crossentropy")
    network.fit(rows, labels, epochs=3, verbose=0)
    return framework, network, rows[:ROWS]


def savedmodel(folder: Path) -> CommonModel:
    """SavedModel of Keras."""
    _, network, rows = _keras()
    network.export(folder / "digits", verbose=False)
    return CommonModel(
        target=folder / "digits",
        inputs=_request(rows, "pixels"),
        expected={"output_0": np.asarray(network(rows))},
        tolerance=1e-6,
    )


def tflite(folder: Path) -> CommonModel:
    """TFLite file that TensorFlow's converter wrote."""
    framework, network, rows = _keras()
    path = folder / "digits.tflite"
    path.write_bytes(framework.lite.TFLiteConverter.from_keras_model(network).convert())
    return CommonModel(
        target=path,
        inputs=_request(rows, "pixels"),
        expected={"output_0": np.asarray(network(rows))},
        tolerance=1e-6,
    )


def _save_booster(model: Any, path: Path) -> None:  # noqa: ANN401  # ships no types
    model.booster_.save_model(path)


def _save(model: Any, path: Path) -> None:  # noqa: ANN401  # ships no types
    model.save_model(str(path))


MODELS: Final[Mapping[str, Callable[[Path], CommonModel]]] = {
    "ONNX": onnx,
    "XGBoost, JSON": _trees("xgboost", "XGBClassifier", "wine.json", _save),
    "XGBoost, UBJSON, regression": _trees("xgboost", "XGBRegressor", "sugar.ubj", _save),
    "XGBoost, pickled class": _trees("xgboost", "XGBClassifier", "wine.joblib", _dump),
    "LightGBM": _trees("lightgbm", "LGBMClassifier", "wine.txt", _save_booster),
    "LightGBM, pickled class": _trees("lightgbm", "LGBMRegressor", "sugar.pkl", _dump),
    "CatBoost": _trees("catboost", "CatBoostClassifier", "wine.cbm", _save),
    "CatBoost, pickled class": _trees("catboost", "CatBoostClassifier", "wine.joblib", _dump),
    "skops, random forest": _estimator(_forest, "cancer.skops"),
    "skops, neural network (adam)": _estimator(_network, "cancer.skops"),
    "skops, histogram boosting": _estimator(_histograms, "sugar.skops", "diabetes"),
    "pickle, pipeline": _estimator(_network, "cancer.pkl"),
    "joblib, transformer": _estimator(_components, "cancer.joblib"),
    "joblib, pipeline on a data frame": data_frame,
    "joblib, texts": texts,
    "OpenVINO": openvino,
    "Python class": python_class,
    "Python function": python_function,
    "MLServer folder, scikit-learn": _mlserver("sklearn"),
    "MLServer folder, XGBoost": _mlserver("xgboost"),
    "Triton repository": triton,
    "registry": stored,
    "TorchScript": torchscript,
    "torch.export": torch_export,
    "SavedModel": savedmodel,
    "TFLite": tflite,
}
OF_PYTORCH: Final = ("TorchScript", "torch.export")
OF_TENSORFLOW: Final = ("SavedModel", "TFLite")
