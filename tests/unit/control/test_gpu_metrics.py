"""A fake of NVML stands for GPUs: few machines that test have one."""

from types import SimpleNamespace
from typing import Any

from headrace.control.telemetry.gpu_metrics import Gpus, load_nvml
from tests.metrics import exposed


class FakeError(Exception):
    pass


class FakeNvml:
    """Two GPUs; the second measures no energy, and a third is gone."""

    NVMLError: type[Exception] = FakeError

    def nvmlInit(self) -> None: ...  # noqa: N802  # NVML's names

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> object:  # noqa: N802
        if index == 2:
            raise FakeError("GPU is lost")
        return index

    def nvmlDeviceGetUUID(self, handle: object) -> str:  # noqa: N802
        return f"GPU-{handle}"

    def nvmlDeviceGetUtilizationRates(self, _handle: object) -> Any:  # noqa: ANN401, N802
        return SimpleNamespace(gpu=25)

    def nvmlDeviceGetMemoryInfo(self, _handle: object) -> Any:  # noqa: ANN401, N802
        return SimpleNamespace(total=80 << 30, used=3 << 30)

    def nvmlDeviceGetPowerUsage(self, _handle: object) -> int:  # noqa: N802
        return 70_500

    def nvmlDeviceGetEnforcedPowerLimit(self, _handle: object) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object) -> int:  # noqa: N802
        if handle == 1:
            raise FakeError("not supported")
        return 123_456_789


def test_gpus_are_told_under_tritons_names_and_units() -> None:
    lines = exposed(Gpus(load=FakeNvml).families()).splitlines()

    found = {
        line.partition("{")[0]: float(line.rpartition(" ")[2])
        for line in lines
        if 'gpu_uuid="GPU-0"' in line
    }
    assert found == {
        "nv_gpu_utilization": 0.25,
        "nv_gpu_memory_total_bytes": 80 << 30,
        "nv_gpu_memory_used_bytes": 3 << 30,
        "nv_gpu_power_usage": 70.5,
        "nv_gpu_power_limit": 700.0,
        "nv_energy_consumption": 123456.789,
    }


def test_what_a_gpu_does_not_measure_is_left_out() -> None:
    text = exposed(Gpus(load=FakeNvml).families())

    assert 'nv_gpu_power_usage{gpu_uuid="GPU-1"}' in text
    assert 'nv_energy_consumption{gpu_uuid="GPU-1"}' not in text


def test_without_a_gpu_nothing_is_told_and_nobody_asks_again() -> None:
    asked = []
    gpus = Gpus(load=lambda: asked.append(1))

    assert (gpus.families(), gpus.families()) == ([], [])
    assert asked == [1]


def test_looking_for_gpus_fails_nowhere() -> None:
    assert load_nvml() is None or Gpus().families()
