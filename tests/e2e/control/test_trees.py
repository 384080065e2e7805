"""Trees of each library answer through Envoy, from a confined replica, as they do in process."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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
AT_ONCE = 32
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
            rows = asked(missing=name != "sklearn")[:AT_ONCE].astype(Datatype(spec.datatype).dtype)
            answer = client.infer(name, {"input": rows}).outputs
            for got, want in zip(answer.values(), one.expected(rows), strict=True):
                assert np.array_equal(got, want), name
