"""MLflow's and SageMaker's scoring protocol on a replica and on a pool."""

import json
from pathlib import Path

import httpx
import pytest

from tests.e2e.replicas import Replica
from tests.e2e.serving.pools import entry, python_model, running_pool

pytestmark = pytest.mark.e2e

ROW = [i / 32 for i in range(32)]
CSV = f"{','.join(f'f{i}' for i in range(32))}\n{','.join(map(str, ROW))}\n"


def _expected(replica: Replica) -> list[list[float]]:
    tensor = {"name": "input", "shape": [1, 32], "datatype": "FP32", "data": ROW}
    answer = httpx.post(f"{replica.url}/v2/models/m/infer", json={"inputs": [tensor]})
    values: list[float] = answer.json()["outputs"][0]["data"]
    return [values]


@pytest.mark.parametrize("path", ["/invocations", "/endpoints/m/invocations"])
@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (json.dumps({"inputs": [ROW]}), "application/json"),
        (json.dumps({"instances": [ROW]}), "application/json; charset=utf-8"),
        (json.dumps({"dataframe_split": {"data": [ROW]}}), "application/json"),
        (json.dumps({"dataframe_records": [dict(enumerate(ROW))]}), "application/json"),
        (CSV, "text/csv"),
    ],
)
def test_every_format_of_a_request_gets_the_predictions_of_v2(
    replica: Replica, path: str, body: str, content_type: str
) -> None:
    answer = httpx.post(replica.url + path, content=body, headers={"content-type": content_type})

    assert answer.status_code == 200
    (row,) = answer.json()["predictions"]
    assert row == pytest.approx(_expected(replica)[0], rel=1e-6)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "reason"),
    [
        ("{", "application/json", 400, "JSON"),
        ('{"rows": []}', "application/json", 400, "'dataframe_split'"),
        ('{"inputs": [[1, 2]]}', "application/json", 400, "unexpected shape"),
        ("a,b\n1,2\n", "text/csv", 400, "has 2 columns, but the model takes 32"),
        ("x", "application/x-parquet", 415, "send application/json or text/csv"),
    ],
)
def test_request_that_cannot_be_read_is_refused_with_the_reason(
    replica: Replica, body: str, content_type: str, status: int, reason: str
) -> None:
    answer = httpx.post(
        f"{replica.url}/invocations", content=body, headers={"content-type": content_type}
    )

    assert answer.status_code == status
    assert reason in answer.json()["error"]


def test_ping_says_that_the_model_is_ready(replica: Replica) -> None:
    assert httpx.get(f"{replica.url}/ping").status_code == 200
    assert httpx.get(f"{replica.url}/invocations").status_code == 405


def test_pool_answers_for_the_endpoint_that_the_path_names(tmp_path: Path) -> None:
    with running_pool(tmp_path) as copy:
        copy.declare(
            entry("double", python_model(tmp_path, "double")),
            entry("triple", python_model(tmp_path, "triple", by=3)),
        )
        for name, factor in (("double", 2), ("triple", 3)):
            answer = copy.client.post(f"/endpoints/{name}/invocations", json={"inputs": [[1, 2]]})
            assert answer.json() == {"predictions": [[factor, 2 * factor]]}
        assert copy.client.get("/ping").status_code == 200
        assert copy.client.post("/endpoints/none/invocations", json={}).status_code == 404


def test_data_frame_with_more_rows_than_a_batch_is_answered_in_order(replica: Replica) -> None:
    rows = [[(i + j) / 1000 for j in range(32)] for i in range(1000)]
    whole = httpx.post(f"{replica.url}/invocations", json={"inputs": rows}).json()["predictions"]

    assert len(whole) == 1000
    for i in (0, 31, 32, 500, 999):
        alone = httpx.post(f"{replica.url}/invocations", json={"inputs": [rows[i]]})
        assert whole[i] == pytest.approx(alone.json()["predictions"][0], rel=1e-5)


def test_error_of_one_part_is_the_answer_to_the_request(tmp_path: Path) -> None:
    failing = (
        "    def infer(self, inputs):\n        if (inputs['x'] > 90).any(): raise ValueError\n"
    )
    file = python_model(tmp_path, "picky")
    file.write_text(file.read_text().replace("    def infer(self, inputs):\n", failing))
    rows = [[float(i), 0.0] for i in range(100)]
    with running_pool(tmp_path) as copy:
        copy.declare(entry("picky", file))
        path = "/endpoints/picky/invocations"
        assert copy.client.post(path, json={"inputs": rows}).status_code == 500
        answer = copy.client.post(path, json={"inputs": rows[:80]})
        assert answer.json() == {"predictions": [[2 * x, 0.0] for x, _ in rows[:80]]}
