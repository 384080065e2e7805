"""A pipeline whose models need two frameworks is refused with the remedy."""

from pathlib import Path

import pytest

from headrace.core import FailedPreconditionError
from headrace.runtimes import inspect_model
from tests import savedmodels

pytestmark = [pytest.mark.torch, pytest.mark.slow]

ENSEMBLE = """
steps:
  - {kind: model, path: torch.pt, inputs: {x: wide}, outputs: {output: first}}
  - {kind: model, path: saved, outputs: {y: second}}
outputs: [first, second]
"""


def test_a_pipeline_of_pytorch_and_tensorflow_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="PyTorch is not installed: make test SUITE=all installs it")
    from tests.torch_models import traced_perceptron  # noqa: PLC0415  # imports PyTorch

    traced_perceptron(tmp_path).path.rename(tmp_path / "torch.pt")
    savedmodels.write(tmp_path / "saved")
    (tmp_path / "pipeline.yaml").write_text(ENSEMBLE)

    with pytest.raises(
        FailedPreconditionError, match="TensorFlow cannot be loaded in a process that holds PyTorch"
    ):
        inspect_model(tmp_path, "pipeline", allow_code=True)
