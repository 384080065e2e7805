"""Rows with missing values get the same answer from every mode, protocol and file format."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import lightgbm
import msgspec
import numpy as np
import polars as pl
import pytest
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier

from headrace.client import Client
from headrace.core import Array
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
from tests.contract.brokers.rig import everything
from tests.e2e.alerts.receivers import wait_for
from tests.e2e.cli.conftest import Shell
from tests.e2e.control.system import System
from tests.e2e.jobs.commands import Command, rows_of
from tests.e2e.modes.test_same_answers import streaming

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS: Final = 2_000
CHUNK: Final = 250
FEATURES: Final = 30
OUTPUT: Final = "probabilities"
NAMES: Final = ("xgb", "lgb", "hgb")
COLUMNS: Final = [f"f{at}" for at in range(FEATURES)]


@pytest.fixture(scope="module")
def rows() -> Array:
    """Rows of scikit-learn's breast cancer data, a fifth of whose values are missing."""
    random = np.random.default_rng(1)
    data = load_breast_cancer().data.astype(np.float32)
    table: Array = data[random.integers(0, len(data), ROWS)]
    table *= random.normal(1, 0.05, size=table.shape)
    table[random.random(table.shape) < 0.2] = np.nan
    return table


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Path], dict[str, Any]]:
    """Files of three libraries' models, and the models."""
    folder = tmp_path_factory.mktemp("models")
    data, labels = load_breast_cancer(return_X_y=True)
    data = data.astype(np.float32)
    data[np.random.default_rng(2).random(data.shape) < 0.2] = np.nan
    models = {
        "xgb": xgboost.XGBClassifier(n_estimators=40, max_depth=4, n_jobs=1),
        "lgb": lightgbm.LGBMClassifier(n_estimators=40, n_jobs=1, verbose=-1),
        "hgb": HistGradientBoostingClassifier(max_iter=40),
    }
    for model in models.values():
        model.fit(data, labels)
    paths = {"xgb": folder / "xgb.ubj", "lgb": folder / "lgb.txt", "hgb": folder / "hgb.skops"}
    models["xgb"].save_model(paths["xgb"])
    models["lgb"].booster_.save_model(paths["lgb"])
    pytest.importorskip("skops.io").dump(models["hgb"], paths["hgb"])
    return paths, models


def test_rows_with_missing_values_are_answered_alike(
    system: System, trained: tuple[dict[str, Path], dict[str, Any]], rows: Array, tmp_path: Path
) -> None:
    paths, models = trained
    np.savez(tmp_path / "rows.npz", input=rows)
    shell = Shell(system.home.parent)
    shell.environment["HEADRACE_HOME"] = str(system.home)
    pushed = shell.run(
        *("models", "push", "hgb", paths["hgb"], "--convert", "onnx", "--allow-code"),
        *("--convert-data", tmp_path / "rows.npz"),
    )
    assert pushed.returncode == 0, pushed.stderr
    served = {"xgb": str(paths["xgb"]), "lgb": str(paths["lgb"]), "hgb": "hgb:1"}
    system.start(
        *(
            {"name": name, "model": model, "batching": {"max_batch_size": CHUNK}}
            for name, model in served.items()
        )
    )
    system.wait_ready(120)
    streamed = by_stream(system, served, rows, tmp_path)

    for name in NAMES:
        expected = models[name].predict_proba(rows)
        answers = {
            "HTTP binary": by_client(system.where().http_url, name, rows),
            "gRPC": by_client(f"grpc://{system.where().grpc_target}", name, rows),
            "HTTP null": by_json(system, name, rows, nulls),
            "HTTP NaN": by_json(system, name, rows, np.ndarray.tolist),
            "V1": by_v1(system, name, rows),
            "stream": streamed[name],
            **by_jobs(system, name, rows, tmp_path / name),
        }
        assert len(np.unique(expected)) > ROWS
        for way, got in answers.items():
            np.testing.assert_array_equal(
                got.astype("<f4"), answers["HTTP binary"].astype("<f4"), f"{name} by {way}"
            )
            tolerance = 1e-6 if name == "hgb" else 1e-7
            np.testing.assert_allclose(got, expected, atol=tolerance, rtol=0)


def nulls(table: Array) -> list[list[float | None]]:
    """Return rows whose missing values are None."""
    return [[None if value != value else value for value in row] for row in table.tolist()]  # noqa: PLR0124  # NaN


def chunks(table: Array) -> list[Array]:
    return [table[at : at + CHUNK] for at in range(0, len(table), CHUNK)]


def by_client(url: str, name: str, rows: Array) -> Array:
    with Client(url) as client:
        datatype = client.signature(name).inputs[0].datatype
        parts = [
            client.infer(name, {"input": part.astype(datatype.dtype)}).outputs[OUTPUT]
            for part in chunks(rows)
        ]
    return np.concatenate(parts)


def by_json(
    system: System, name: str, rows: Array, to_lists: Callable[[Array], list[Any]]
) -> Array:
    (spec,) = system.call("GET", f"{system.where().http_url}/v2/models/{name}")[1]["inputs"]
    parts = []
    for part in chunks(rows):
        item = {
            "name": "input",
            "shape": list(part.shape),
            "datatype": spec["datatype"],
            "data": to_lists(part),
        }
        status, answer = system.infer(name, {"inputs": [item]})
        assert status == 200, answer
        (output,) = [output for output in answer["outputs"] if output["name"] == OUTPUT]
        parts.append(np.reshape(output["data"], output["shape"]))
    return np.concatenate(parts)


def by_v1(system: System, name: str, rows: Array) -> Array:
    parts = []
    for part in chunks(rows):
        body = json.dumps({"instances": nulls(part)}).encode()
        url = f"{system.where().http_url}/v1/models/{name}:predict"
        with urllib.request.urlopen(url, body, timeout=30) as answer:  # noqa: S310  # loopback
            predictions = json.load(answer)["predictions"]
        parts.append(np.array([row[OUTPUT] for row in predictions]))
    return np.concatenate(parts)


def by_stream(
    system: System, served: dict[str, str], rows: Array, folder: Path
) -> dict[str, Array]:
    """Each row a record that every stream reads; a null, or NaN in every other record."""
    url = f"log://{folder}/log"
    streams = [
        {
            "name": f"{name}-stream",
            "model": model,
            "source": {"broker": url, "topics": ["in"]},
            "sink": {"topic": name, "fields": ["row"]},
        }
        for name, model in served.items()
    ]
    (folder / "streams.yaml").write_text(json.dumps({"version": 1, "streams": streams}))
    broker = open_broker(url, home=folder)
    for topic in ("in", *served):
        broker.create_topic(topic, partitions=2)
    values = zip(rows.tolist(), nulls(rows), strict=True)
    records = [{"row": row, "input": values[row % 2]} for row, values in enumerate(values)]
    broker.send(
        [NewRecord(topic="in", key=None, value=json.dumps(record).encode()) for record in records]
    )

    def written() -> int:
        return sum(end - first for topic in served for first, end in broker.ends(topic).values())

    log = folder / "stream.log"
    with streaming(folder / "streams.yaml", system.home, log):
        wait_for(
            lambda: written() >= len(rows) * len(served) or None,
            lambda: f"{written()}\n{log.read_text()}",
        )
    answers = {}
    for topic in served:
        found = [msgspec.json.decode(record.value or b"") for record in everything(broker, topic)]
        found.sort(key=lambda answer: answer["row"])
        assert [answer["row"] for answer in found] == list(range(len(rows)))
        answers[topic] = np.array([answer[OUTPUT] for answer in found])
    broker.close()
    return answers


def by_jobs(system: System, name: str, rows: Array, folder: Path) -> dict[str, Array]:
    folder.mkdir()
    table = pl.DataFrame(
        {"row": range(len(rows))} | {column: rows[:, at] for at, column in enumerate(COLUMNS)}
    )
    table.fill_nan(None).write_parquet(folder / "null.parquet")
    table.write_parquet(folder / "nan.parquet")
    table.fill_nan(None).write_csv(folder / "null.csv")
    table.write_csv(folder / "nan.csv")
    (folder / "null.jsonl").write_text(table.fill_nan(None).write_ndjson())
    (folder / "nan.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in table.iter_rows(named=True))
    )
    answers = {}
    # Each file is read for one model, and each kind of file for all.
    for path in sorted(folder.glob("*" if name == "xgb" else "null.*")):
        out = folder / f"out-{path.name}"
        job = Command(
            ["-m", name, "-i", path, "-o", out, "--keys", "row", "--map", "input=f0..f29"],
            system.home,
        )
        summary = job.summary()
        assert (summary["rows"], summary["errors"]) == (len(rows), 0), path
        found = rows_of(out).with_columns(pl.col("row").cast(pl.Int64)).sort("row")
        answers[path.name] = found[OUTPUT].to_numpy()
    return answers
