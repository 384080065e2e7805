"""A law: what the analysis calls independent answers each row as that row alone."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, event, given, settings

from headrace.core import Array, Datatype, TensorSpec
from headrace.runtimes.rows.onnx import analyse_onnx
from headrace.runtimes.rows.openvino import analyse_openvino
from headrace.runtimes.rows.values import RowVerdict
from tests import openvino_models, random_graphs

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


def by_openvino(path: Path, inputs: Sequence[TensorSpec]) -> RowVerdict:
    """The verdict on a model as OpenVINO reads it."""
    try:
        model = openvino_models.library().Core().read_model(path)
    except RuntimeError:
        return RowVerdict(why_not="OpenVINO does not read it")
    specs = {spec.name: spec for spec in inputs}
    # What no output needs is no input any more.
    ordered = [specs[name] for port in model.inputs for name in port.names if name in specs]
    if len(ordered) < len(model.inputs):
        return RowVerdict(why_not="OpenVINO calls an input otherwise")
    output = TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1,))
    return analyse_openvino(model, ordered, [output])


def check(
    model: bytes,
    operators: str,
    analyse: Callable[[Path, Sequence[TensorSpec]], RowVerdict] = analyse_onnx,
) -> bool:
    """Run a model that is called independent; whether there was one."""
    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        file.write(model)
        file.flush()
        verdict = analyse(Path(file.name), _INPUTS)
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


@given(random_graphs.graphs())
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_called_independent_as_openvino_reads_it_is(graph: tuple[bytes, str]) -> None:
    event("independent" if check(*graph, by_openvino) else "not proven")


@pytest.mark.long
@given(random_graphs.graphs())
@settings(max_examples=5000, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_same_for_many_graphs(graph: tuple[bytes, str]) -> None:
    event("independent" if check(*graph) else "not proven")
