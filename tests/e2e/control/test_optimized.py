"""What the optimizer chose answers through Envoy, from confined replicas, as in process."""

from pathlib import Path

import numpy as np
import pytest

from headrace.client import Client
from headrace.core import example_inputs
from headrace.runtimes import load_model
from headrace.runtimes.base import Tuning
from headrace.runtimes.optimized.processor import this_processor
from headrace.testing import models
from tests import openvino_models, optimized_models
from tests.e2e.control.system import System, replicas

pytestmark = [pytest.mark.e2e, pytest.mark.slow]


@pytest.mark.long
def test_each_engine_answers_as_in_process(system: System, tmp_path: Path) -> None:
    openvino_models.library()
    paths = {
        "onnx": optimized_models.write(tmp_path / "a", tuning=Tuning(arena=True)),
        "openvino": optimized_models.write(
            tmp_path / "b",
            runtimes=("openvino",),
            tuning=Tuning(precision="f32", intra_op_threads=2),
        ),
        "both": optimized_models.write(
            tmp_path / "c", runtimes=("onnx", "openvino"), bounds=(2, None)
        ),
    }
    optimized_models.changed(
        paths["both"],
        processor={"name": "Elsewhere", "features": [*this_processor().features, "avx9"]},
    )
    system.start(*({"name": name, "model": str(path)} for name, path in paths.items()))
    system.wait_ready(120)
    status = system.wait_for(lambda s: all(replicas(s, name)[0]["device"] for name in paths))

    with Client(system.where().http_url) as client:
        for name, path in paths.items():
            model = load_model(path)
            for rows in (1, 2, 7):
                inputs = example_inputs(model.signature, rows=rows, seed=rows)
                answer = client.infer(name, inputs).outputs
                for output, expected in model.run(inputs).items():
                    assert np.allclose(answer[output], expected, atol=1e-5), (name, rows)
    told = {name: replicas(status, name)[0]["device"]["optimized"] for name in paths}
    here = f"verified on {this_processor().name}"
    assert told["onnx"] == f"onnx-0, {here}"
    assert told["openvino"] == f"openvino-0, {here}"
    assert told["both"] == (
        "onnx-0 and openvino-1, verified on Elsewhere; verified again on this processor, which "
        "lacks avx9"
    )


@pytest.mark.long
def test_what_answers_otherwise_on_this_processor_is_not_served(
    system: System, tmp_path: Path
) -> None:
    path = optimized_models.write(tmp_path / "made")
    (path / "onnx-0" / "mlp.onnx").write_bytes(models.mlp(seed=5))
    optimized_models.changed(path, processor={"name": "Elsewhere", "features": ["avx9"]})
    system.start({"name": "changed", "model": str(path)})
    assert system.process is not None
    assert system.process.wait(60) != 0

    told = system.log_text()
    assert "was verified on Elsewhere; on this processor, which lacks avx9" in told
    assert "of 7 answers differ" in told
    assert "run `headrace optimize` here" in told
