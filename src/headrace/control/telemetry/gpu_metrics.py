"""Metrics of this machine's GPUs, read through NVML, under Triton's names.

They need `headrace[gpu]` and NVIDIA's driver; without either there are no metrics.
"""

import importlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, cast

from headrace.observe.metrics import Family, Labels, counter, gauge

_LOG: Final = logging.getLogger("headrace.control")
_PERCENT: Final = 100
_MILLI: Final = 1e-3


class _Utilization(Protocol):
    gpu: int


class _Memory(Protocol):
    total: int
    used: int


class Nvml(Protocol):
    """The used functions of `pynvml`; a handle is an opaque object."""

    NVMLError: type[Exception]

    def nvmlInit(self) -> None: ...  # noqa: D102, N802  # NVML's names
    def nvmlDeviceGetCount(self) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetHandleByIndex(self, index: int, /) -> object: ...  # noqa: D102, N802
    def nvmlDeviceGetUUID(self, handle: object, /) -> str: ...  # noqa: D102, N802
    def nvmlDeviceGetUtilizationRates(self, handle: object, /) -> _Utilization: ...  # noqa: D102, N802
    def nvmlDeviceGetMemoryInfo(self, handle: object, /) -> _Memory: ...  # noqa: D102, N802
    def nvmlDeviceGetPowerUsage(self, handle: object, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetEnforcedPowerLimit(self, handle: object, /) -> int: ...  # noqa: D102, N802
    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, /) -> int: ...  # noqa: D102, N802


def load_nvml() -> Nvml | None:
    """Return initialised NVML; None if it is not available."""
    try:
        nvml = cast("Nvml", importlib.import_module("pynvml"))
    except ImportError:
        return None
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        _LOG.info("no GPU to watch", extra={"reason": str(error)})
        return None
    return nvml


@dataclass(slots=True, kw_only=True)
class Gpus:
    """The GPUs of this machine, detected at the first call. Not thread-safe."""

    load: Callable[[], Nvml | None] = load_nvml
    _nvml: Nvml | None = field(default=None, init=False)
    _is_loaded: bool = field(default=False, init=False)

    def families(self) -> list[Family]:
        """Return the GPUs' current metrics. Blocking."""
        if not self._is_loaded:
            self._nvml, self._is_loaded = self.load(), True
        return [] if self._nvml is None else list(_families(self._nvml))


def _families(nvml: Nvml) -> Iterator[Family]:
    handles = list(_handles(nvml))
    for kind, name, text, read in _FIGURES:
        samples: list[tuple[Labels, float]] = []
        for uuid, handle in handles:
            labels = (("gpu_uuid", uuid),)
            try:
                samples.append((labels, read(nvml, handle)))
            except nvml.NVMLError:
                continue  # not every GPU supports every metric
        yield kind(name, text, samples)


def _handles(nvml: Nvml) -> Iterator[tuple[str, object]]:
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            yield nvml.nvmlDeviceGetUUID(handle), handle
        except nvml.NVMLError:
            continue  # the GPU was lost from the bus


_Kind = Callable[[str, str, list[tuple[Labels, float]]], Family]
_Read = Callable[[Nvml, object], float]

_FIGURES: Final[tuple[tuple[_Kind, str, str, _Read], ...]] = (
    (
        gauge,
        "nv_gpu_utilization",
        "GPU utilization rate [0.0 - 1.0]",
        lambda nvml, gpu: nvml.nvmlDeviceGetUtilizationRates(gpu).gpu / _PERCENT,
    ),
    (
        gauge,
        "nv_gpu_memory_total_bytes",
        "GPU total memory, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).total,
    ),
    (
        gauge,
        "nv_gpu_memory_used_bytes",
        "GPU used memory, in bytes",
        lambda nvml, gpu: nvml.nvmlDeviceGetMemoryInfo(gpu).used,
    ),
    (
        gauge,
        "nv_gpu_power_usage",
        "GPU power usage in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetPowerUsage(gpu) * _MILLI,
    ),
    (
        gauge,
        "nv_gpu_power_limit",
        "GPU power management limit in watts",
        lambda nvml, gpu: nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) * _MILLI,
    ),
    (
        counter,
        "nv_energy_consumption",
        "GPU energy consumption in joules since the driver was loaded",
        lambda nvml, gpu: nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * _MILLI,
    ),
)
