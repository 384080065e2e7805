"""Models that MLflow logs, one of each flavor: `python -m tests.mlflow.models FLAVOR DIRECTORY`.

A child process logs each model: PyTorch and TensorFlow cannot be in one process. The variable
MLFLOW_TRACKING_URI names the tracking server; each model is also registered as `FLAVOR`, with the
alias `champion`.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.pyfunc import scoring_server
from sklearn.datasets import load_diabetes, load_iris
from starlette.testclient import TestClient

_IRIS = load_iris(as_frame=True)
TABLE: pd.DataFrame = _IRIS.data
CLASSES = _IRIS.target
MATRIX = TABLE.to_numpy(np.float32)


def _sklearn() -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression  # noqa: PLC0415  # each child imports its own

    model = LogisticRegression(max_iter=500).fit(TABLE, CLASSES)
    return {"log": mlflow.sklearn.log_model, "sk_model": model, "serialization_format": "skops"}


def _sklearn_pickle() -> dict[str, Any]:
    from sklearn.ensemble import RandomForestRegressor  # noqa: PLC0415  # as above

    table = load_diabetes(as_frame=True)
    model = RandomForestRegressor(n_estimators=20, random_state=0).fit(table.data, table.target)
    return {
        "log": mlflow.sklearn.log_model,
        "sk_model": model,
        "serialization_format": "cloudpickle",
        "example": table.data.head(3),
    }


def _xgboost() -> dict[str, Any]:
    from xgboost import XGBClassifier  # noqa: PLC0415  # as above

    model = XGBClassifier(n_estimators=20, max_depth=3).fit(TABLE, CLASSES)
    return {"log": mlflow.xgboost.log_model, "xgb_model": model}


def _xgboost_booster() -> dict[str, Any]:
    import xgboost  # noqa: PLC0415  # as above

    data = xgboost.DMatrix(TABLE, (CLASSES == 1).astype(int))
    model = xgboost.train({"objective": "binary:logistic", "max_depth": 3}, data, 10)
    return {"log": mlflow.xgboost.log_model, "xgb_model": model}


def _lightgbm() -> dict[str, Any]:
    import lightgbm  # noqa: PLC0415  # as above

    table = TABLE.rename(columns=lambda name: name.replace(" ", "_").strip("()").replace("(", ""))
    data = lightgbm.Dataset(table, (CLASSES == 1).astype(int))
    model = lightgbm.train({"objective": "binary", "verbose": -1, "num_leaves": 7}, data, 10)
    return {"log": mlflow.lightgbm.log_model, "lgb_model": model, "example": table.head(3)}


def _catboost() -> dict[str, Any]:
    from catboost import CatBoostClassifier  # noqa: PLC0415  # as above

    model = CatBoostClassifier(iterations=20, depth=3, verbose=0, allow_writing_files=False)
    model.fit(TABLE, CLASSES)
    return {"log": mlflow.catboost.log_model, "cb_model": model}


def _onnx() -> dict[str, Any]:
    from skl2onnx import to_onnx  # noqa: PLC0415  # as above
    from sklearn.neural_network import MLPRegressor  # noqa: PLC0415  # as above

    target = TABLE["petal width (cm)"]
    network = MLPRegressor(hidden_layer_sizes=(8,), max_iter=500, random_state=0).fit(
        MATRIX, target
    )
    model = to_onnx(network, MATRIX[:1])
    return {"log": mlflow.onnx.log_model, "onnx_model": model, "example": MATRIX[:3]}


def _pytorch() -> dict[str, Any]:
    import torch  # noqa: PLC0415  # as above

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return {"log": mlflow.pytorch.log_model, "pytorch_model": model, "example": MATRIX[:3]}


def _tensorflow() -> dict[str, Any]:
    import tensorflow as tf  # noqa: PLC0415  # as above

    tf.keras.utils.set_random_seed(0)
    layers = tf.keras.layers
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(3, "softmax")])
    return {"log": mlflow.tensorflow.log_model, "model": model, "example": MATRIX[:3]}


class _Scorer(mlflow.pyfunc.PythonModel):  # type: ignore[misc]  # ships no types here
    """A model of the author's own code, which returns a data frame."""

    def predict(self, context: object, model_input: pd.DataFrame) -> pd.DataFrame:
        """Return the sum of the row and the name of the larger half."""
        del context
        total = model_input.sum(axis=1)
        names = ["large" if value > 10 else "small" for value in total]
        return pd.DataFrame({"total": total, "size": names})


def _pyfunc() -> dict[str, Any]:
    return {"log": mlflow.pyfunc.log_model, "python_model": _Scorer()}


FLAVORS: dict[str, Callable[[], dict[str, Any]]] = {
    "sklearn": _sklearn,
    "sklearn-pickle": _sklearn_pickle,
    "xgboost": _xgboost,
    "xgboost-booster": _xgboost_booster,
    "lightgbm": _lightgbm,
    "catboost": _catboost,
    "onnx": _onnx,
    "pytorch": _pytorch,
    "tensorflow": _tensorflow,
    "pyfunc": _pyfunc,
}


def requests(example: pd.DataFrame | np.ndarray[Any, Any]) -> list[tuple[str, str]]:
    """Return requests of every format for a model, with missing values, and invalid ones."""
    is_table = isinstance(example, pd.DataFrame)
    frame = example if isinstance(example, pd.DataFrame) else pd.DataFrame(example)
    gaps = frame.copy()
    gaps.iloc[0, 0] = np.nan
    split = {"columns": frame.columns.tolist(), "data": frame.to_numpy().tolist()}
    documents: list[object] = [
        {"dataframe_split": split},
        {"dataframe_split": json.loads(gaps.to_json(orient="split"))},
        {"dataframe_records": json.loads(frame.to_json(orient="records"))},
        {"dataframe_split": {"columns": ["no"], "data": [[1.0]]}},
        {"instances": frame.to_numpy().tolist()}
        if not is_table
        else {"instances": _records(frame)},
        {"inputs": frame.to_numpy().tolist()} if not is_table else {"inputs": _lists(frame)},
        {"rows": []},
        [],
    ]
    bodies = [(json.dumps(document), "application/json") for document in documents]
    if is_table:  # MLflow reads CSV for column-based signatures only
        bodies += [(frame.to_csv(index=False), "text/csv"), (gaps.to_csv(), "text/csv")]
    return [*bodies, ("{", "application/json"), ("x", "application/x-other")]


def _records(frame: pd.DataFrame) -> object:
    return frame.to_dict(orient="records")


def _lists(frame: pd.DataFrame) -> object:
    return frame.to_dict(orient="list")


def answers(directory: str, example: pd.DataFrame | np.ndarray[Any, Any]) -> list[dict[str, Any]]:
    """Return what MLflow's scoring server answers to `requests`."""
    client = TestClient(scoring_server.init(mlflow.pyfunc.load_model(directory)))
    scored = []
    for body, content_type in requests(example):
        answer = client.post(
            "/invocations", content=body.encode(), headers={"content-type": content_type}
        )
        scored.append(
            {
                "body": body,
                "content_type": content_type,
                "status": answer.status_code,
                "predictions": answer.json()["predictions"] if answer.is_success else None,
            }
        )
    return scored


def main(flavor: str, directory: str) -> None:
    """Log one model, register it, download it to `directory`, and write what MLflow answers."""
    logged = FLAVORS[flavor]()
    log, example = logged.pop("log"), logged.pop("example", TABLE.head(3))
    with mlflow.start_run():
        info = log(name="model", input_example=example, registered_model_name=flavor, **logged)
    client = mlflow.MlflowClient()
    client.set_registered_model_alias(flavor, "champion", info.registered_model_version)
    target = Path(directory)
    mlflow.artifacts.download_artifacts(info.model_uri, dst_path=str(target / "folder"))
    expected = {"run": info.run_id, "answers": answers(str(target / "folder"), example)}
    (target / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main(*sys.argv[1:])
