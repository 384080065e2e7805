"""Batched with others or alone: the answer is the same, for every kind of model."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.client import Client
from headrace.core import InvalidArgumentError, example_inputs
from headrace.runtimes import load_model
from headrace.testing import models
from tests.e2e.replicas import running

pytestmark = pytest.mark.e2e

CALLERS = 16


def request_all(url: str, many: list[dict[str, np.ndarray[Any, Any]]]) -> list[Any]:
    """Answers, or errors, to all of `many`, asked by several callers at once."""

    def ask(some: list[dict[str, np.ndarray[Any, Any]]]) -> list[Any]:
        answers: list[Any] = []
        with Client(url) as client:
            for inputs in some:
                try:
                    answers.append(client.infer("m", inputs).outputs)
                except InvalidArgumentError as error:
                    answers.append(error)
        return answers

    with ThreadPoolExecutor(CALLERS) as pool:
        parts = list(pool.map(ask, [many[i::CALLERS] for i in range(CALLERS)]))
    answers: list[Any] = [None] * len(many)
    for i, part in enumerate(parts):
        answers[i::CALLERS] = part
    return answers


def largest_batch(url: str) -> int:
    statistics = httpx.get(f"{url}/v2/models/m/stats").json()["model_stats"][0]["batch_stats"]
    return max(int(entry["batch_size"]) for entry in statistics)


@pytest.mark.parametrize("build", [models.encoder, models.two_outputs, models.mlp])
def test_answers_do_not_depend_on_who_shares_the_batch(tmp_path: Path, build: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build())
    model = load_model(path)
    rng = np.random.default_rng(5)
    many = [
        example_inputs(
            model.signature,
            rows=int(rng.integers(1, 4)),
            variable=int(rng.integers(2, 20)),
            seed=seed,
        )
        for seed in range(200)
    ]

    with running(tmp_path, path, batching={"max_queue_delay_s": 0.01}) as replica:
        answers = request_all(replica.url, many)
        batch = largest_batch(replica.url)

    assert batch > 4
    for inputs, answer in zip(many, answers, strict=True):
        alone = model.run(inputs)
        assert set(answer) == set(alone)
        for name, array in alone.items():
            assert answer[name].shape == array.shape
            np.testing.assert_allclose(answer[name], array, rtol=1e-3, atol=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("build", [models.unbatched, models.cumulative, models.softmax_over_rows])
def test_a_model_without_a_batch_axis_is_never_batched(tmp_path: Path, build: Any) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(build())
    model = load_model(path)
    many = [example_inputs(model.signature, variable=4, seed=seed) for seed in range(60)]

    with running(tmp_path, path, batching={"max_queue_delay_s": 0.01}) as replica:
        answers = request_all(replica.url, many)
        assert largest_batch(replica.url) == 1
        config = httpx.get(f"{replica.url}/v2/models/m/config").json()

    assert config["max_batch_size"] == 0
    for inputs, answer in zip(many, answers, strict=True):
        for name, array in model.run(inputs).items():
            np.testing.assert_allclose(answer[name], array, rtol=1e-5)


def test_one_bad_row_among_many_callers_fails_alone(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(models.lookup(entries=4))
    model = load_model(path)
    (spec,) = model.signature.inputs
    shape = tuple(1 if size == -1 else size for size in spec.shape)
    ids = [9 if i % 10 == 3 else i % 4 for i in range(100)]
    many = [{spec.name: np.full(shape, i, spec.datatype.dtype)} for i in ids]

    with running(tmp_path, path, batching={"max_queue_delay_s": 0.01}) as replica:

        def ask(inputs: dict[str, np.ndarray[Any, Any]]) -> int:
            (name, array), *_ = inputs.items()
            tensor = {
                "name": name,
                "shape": list(array.shape),
                "datatype": spec.datatype,
                "data": array.ravel().tolist(),
            }
            return httpx.post(
                f"{replica.url}/v2/models/m/infer", json={"inputs": [tensor]}
            ).status_code

        with ThreadPoolExecutor(CALLERS) as pool:
            statuses = list(pool.map(ask, many))

    assert all((status == 200) == (i != 9) for status, i in zip(statuses, ids, strict=True))
    assert {status for status, i in zip(statuses, ids, strict=True) if i == 9} <= {400, 500}
