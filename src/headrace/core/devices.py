"""Devices that may run a model, and those that run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Device(StrEnum):
    """Device that runs a model. Only `auto` falls back to another device."""

    AUTO = "auto"
    """An accelerator if there is one that starts, otherwise the CPU."""
    CPU = "cpu"
    GPU = "gpu"
    """Any GPU accelerator."""
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


GPUS: Final = (Device.GPU, Device.CUDA, Device.TENSORRT)
"""Devices that need a GPU."""
ON_CPU: Final = ("CPU",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """Devices that run a loaded model, and the others that were considered."""

    asked: str
    """Requested device."""
    used: tuple[str, ...]
    """Devices that run the model; the first one is preferred."""
    failed: Mapping[str, str] = field(default_factory=dict)
    """Devices that should run the model but did not start, with the reason."""
    unused: Mapping[str, str] = field(default_factory=dict)
    """Devices that are present but were not tried, with the reason."""
    optimized: str = ""
    """How the optimizer runs the model, and the processor on which that was verified; empty for a
    model that was not optimized.
    """
