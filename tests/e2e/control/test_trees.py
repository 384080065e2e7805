"""Trees of each library answer through Envoy, from a confined replica, as they do in process."""

import json
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import joblib
import numpy as np
import pytest

from headrace.cli.base.management import Management
from headrace.cli.up import start
from headrace.client import Client
from headrace.core import Datatype
from tests import tabular_models
from tests.e2e.control.system import System
from tests.tabular_models import Trained, asked

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

TRAIN: dict[str, Callable[[Path, str], Trained]] = {
    "xgboost": tabular_models.xgboost,
    "lightgbm": tabular_models.lightgbm,
    "catboost": tabular_models.catboost,
    "sklearn": tabular_models.sklearn,
}
MAX_CONCURRENT = 32
"""Rows that one request may have unless the endpoint says else."""


def test_each_library_answers_as_in_process(system: System, tmp_path: Path) -> None:
    trained = {}
    for name, train in TRAIN.items():
        (tmp_path / name).mkdir()
        trained[name] = train(tmp_path / name, "multiclass")
    system.start(*({"name": name, "model": str(one.path)} for name, one in trained.items()))
    system.wait_ready(120)

    with Client(system.where().http_url) as client:
        for name, one in trained.items():
            (spec,) = client.metadata(name).inputs
            rows = asked(missing=name != "sklearn")[:MAX_CONCURRENT].astype(
                Datatype(spec.datatype).dtype
            )
            answer = client.infer(name, {"input": rows}).outputs
            for got, want in zip(answer.values(), one.expected(rows), strict=True):
                assert np.array_equal(got, want), name


def test_a_pickle_of_a_data_frame_answers_as_in_process(system: System, tmp_path: Path) -> None:
    pandas = tabular_models.library("pandas", "sklearn")
    compose = tabular_models.library("sklearn.compose", "sklearn")
    scale = tabular_models.library("sklearn.preprocessing", "sklearn")
    ensemble = tabular_models.library("sklearn.ensemble", "sklearn")
    pipeline = tabular_models.library("sklearn.pipeline", "sklearn")
    rng = np.random.default_rng(0)
    people = pandas.DataFrame(
        {"age": rng.normal(40, 9, 200), "city": rng.choice(["Basel", "Bern"], 200)}
    )
    encoder = scale.OneHotEncoder(handle_unknown="error")
    table = compose.make_column_transformer((encoder, ["city"]), remainder="passthrough")
    model = pipeline.make_pipeline(table, ensemble.RandomForestClassifier(8, random_state=0))
    model.fit(people, np.where(people["age"] > 40, "old", "young"))
    path = tmp_path / "people.joblib"
    joblib.dump(model, path)
    system.start({"name": "people", "model": str(path), "allow_code": True})
    status = system.wait_ready(120)
    some = people[:MAX_CONCURRENT]
    cities = np.array([city.encode() for city in some["city"]], np.object_)

    with Client(system.where().http_url) as client:
        answer = client.infer("people", {"age": some["age"].to_numpy(), "city": cities}).outputs

    assert np.array_equal(answer["probabilities"], model.predict_proba(some))
    assert [label.decode() for label in answer["label"]] == list(model.predict(some))

    [endpoint] = status["endpoints"]
    where, token = system.where(), system.token()
    example = start.example_of(Management(where.admin_url, token=token), endpoint)
    line = start.command(where.http_url, "people", example=example)
    done = subprocess.run(shlex.split(line), check=True, capture_output=True)
    [label] = [one for one in json.loads(done.stdout)["outputs"] if one["name"] == "label"]
    assert example["city"] in {"Basel", "Bern"}
    assert label["data"][0] in {"old", "young"}
    assert endpoint["note"] == ""
