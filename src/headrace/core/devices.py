"""Devices: on which a model may run, and on which it does."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final


class Device(StrEnum):
    """What runs a model. Only `auto` takes another one where the first cannot be had."""

    AUTO = "auto"
    """An accelerator if there is one that starts, else the CPU."""
    CPU = "cpu"
    GPU = "gpu"
    """Any accelerator of a graphics card's."""
    CUDA = "cuda"
    TENSORRT = "tensorrt"
    OPENVINO = "openvino"


ON_CPU: Final = ("CPU",)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceUse:
    """On what a loaded model runs, and what else there was.

    `asked`: the device that was asked for. `used`: what runs it, the first that can run a part of
    it comes first. `failed`: what should have run it and could not be started; `unused`: what is
    here and was not tried; each with the reason. `optimized`: how the optimizer has it run, and on
    what that was verified; empty for a model that nobody optimized.
    """

    asked: str
    used: tuple[str, ...]
    failed: Mapping[str, str] = field(default_factory=dict)
    unused: Mapping[str, str] = field(default_factory=dict)
    optimized: str = ""
