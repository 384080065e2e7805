"""A law: what the analysis calls independent answers each row as that row alone."""

import tempfile
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, event, given, settings

from headrace.core import Array, Datatype, TensorSpec
from headrace.runtimes.rows.onnx import analyse_onnx
from tests import random_graphs

_INPUTS = (
    TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, -1, 2)),
    TensorSpec(name="k", datatype=Datatype.INT64, shape=(-1, -1)),
    TensorSpec(name="f", datatype=Datatype.FP32, shape=(-1, 4)),
)


def answers_alone(
    session: ort.InferenceSession, inputs: dict[str, Array], rows: int
) -> list[Array]:
    """The answer to each row; none if the model takes one of them not."""
    answers = []
    for i in range(rows):
        try:
            (answer,) = session.run(
                None, {name: array[i : i + 1] for name, array in inputs.items()}
            )
        except Exception:  # noqa: BLE001  # ONNX Runtime's errors share no base class
            return []
        answers.append(answer)
    return answers


def check(model: bytes, operators: str) -> bool:
    """Run a model that is called independent; whether there was one."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model)
        file.flush()
        verdict = analyse_onnx(Path(file.name), _INPUTS)
    if not verdict.is_proven:
        return False
    session = random_graphs.session(model)
    for rows, scale in ((2, 1.0), (3, 1e3), (4, 1e-3), (5, 10.0)):
        inputs = random_graphs.inputs(rows, rows, scale)
        alone = answers_alone(session, inputs, rows)
        if not alone:
            continue
        together = session.run(None, inputs)[0]
        for i, want in enumerate(alone):
            assert together[i : i + 1].shape == want.shape, operators
            largest = np.abs(want[np.isfinite(want)]).max(initial=0)
            np.testing.assert_allclose(
                together[i : i + 1], want, rtol=1e-4, atol=1e-5 * largest, err_msg=operators
            )
    return True


@given(random_graphs.graphs())
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_called_independent_answers_rows_as_alone(graph: tuple[bytes, str]) -> None:
    event("independent" if check(*graph) else "not proven")


@pytest.mark.long
@given(random_graphs.graphs())
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_for_many_graphs(graph: tuple[bytes, str]) -> None:
    event("independent" if check(*graph) else "not proven")
