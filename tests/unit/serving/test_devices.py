"""A model that does not run on what was asked for is not served on something else."""

from pathlib import Path

import msgspec
import pytest

from headrace.core import FailedPreconditionError, ReplicaSettings
from headrace.core.devices import Device
from headrace.scoring.loading import load_model
from headrace.testing import models
from tests import tabular_models


def settings(path: Path, device: str = "") -> ReplicaSettings:
    asked = Device(device) if device else msgspec.UNSET
    return ReplicaSettings(model_name="m", model_version="1", path=str(path), device=asked)


def test_what_runs_a_model_is_known_once_it_is_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.matmul())
    with caplog.at_level("INFO"):
        loaded = load_model(settings(path), warm_up_s=0)

    assert loaded.device is not None
    assert (loaded.device.asked, loaded.device.used) == ("auto", ("CPU",))
    (told,) = [record for record in caplog.records if record.message == "model loaded"]
    assert vars(told)["device"] == "CPU"


@pytest.mark.parametrize("device", ["", "cpu"])
def test_a_runtime_of_the_cpu_says_so(tmp_path: Path, device: str) -> None:
    path = tabular_models.lightgbm(tmp_path, "binary").path
    loaded = load_model(settings(path, device), warm_up_s=0)

    assert loaded.device is not None
    assert (loaded.device.asked, loaded.device.used) == (device or "auto", ("CPU",))
    with pytest.raises(FailedPreconditionError, match="'lightgbm' runs on the CPU only"):
        load_model(settings(path, "gpu"), warm_up_s=0)


def test_a_runtime_that_does_not_say_cannot_be_asked_for_a_device(tmp_path: Path) -> None:
    path = tmp_path / "model.py"
    path.write_text(models.python_double())

    assert load_model(settings(path), warm_up_s=0).device is None
    with pytest.raises(FailedPreconditionError, match="leaves the choice of a device to the model"):
        load_model(settings(path, "cuda"), warm_up_s=0)


def test_a_trial_runs_on_the_cpu_whatever_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(models.matmul())

    loaded = load_model(settings(path, "gpu"), warm_up_s=0, device=Device.CPU)

    assert loaded.device is not None
    assert loaded.device.used == ("CPU",)
