"""Choice of ONNX Runtime's execution providers for a model and this machine.

The order is TensorRT, CUDA, OpenVINO, CPU. Each provider leaves unsupported nodes to the next, and
the CPU runs everything.
"""

import ctypes
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError, UnsupportedModelError
from headrace.core.devices import Device

CPU: Final = "CPUExecutionProvider"
TENSORRT: Final = "TensorrtExecutionProvider"
CUDA: Final = "CUDAExecutionProvider"
OPENVINO: Final = "OpenVINOExecutionProvider"
_SUFFIX: Final = "ExecutionProvider"
_TRIED: Final[dict[Device, tuple[str, ...]]] = {
    Device.AUTO: (TENSORRT, CUDA, OPENVINO),
    Device.CPU: (),
    Device.GPU: (TENSORRT, CUDA),
    Device.CUDA: (CUDA,),
    Device.TENSORRT: (TENSORRT, CUDA),
    Device.OPENVINO: (OPENVINO,),
}
_ONE_OF: Final[dict[Device, tuple[str, ...]]] = {
    **_TRIED,
    Device.AUTO: (),
    Device.TENSORRT: (TENSORRT,),
}
"""At least one of these has to run the model; empty if the device does not matter."""
_PACKAGES: Final = {
    TENSORRT: "onnxruntime-gpu",
    CUDA: "onnxruntime-gpu",
    OPENVINO: "onnxruntime-openvino",
}
_LIBRARIES: Final = {
    TENSORRT: "libonnxruntime_providers_tensorrt.so",
    CUDA: "libonnxruntime_providers_cuda.so",
    OPENVINO: "libonnxruntime_providers_openvino.so",
}
_DEVICES: Final = Path("/dev")
_GPU_FILES: Final = ("nvidia[0-9]*", "dxg", "nvmap")
"""Device files of a Linux driver, of a Windows driver under WSL, and of a Jetson."""
_DRIVER: Final = "libcuda.so.1"
NEEDS_GPU: Final = (TENSORRT, CUDA)
NO_GPU: Final = (
    "no GPU is visible; a container needs `docker run --gpus all`, a pod the resource "
    "nvidia.com/gpu, and the host NVIDIA's driver"
)
_WHY_UNUSED: Final = {
    "AzureExecutionProvider": "it calls a service over the network, and is never used",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderPlan:
    """`tried`: providers besides the CPU's, in order. `unused`: the others, with reasons."""

    tried: tuple[str, ...]
    unused: dict[str, str]


def plan(device: str, available: Sequence[str]) -> ProviderPlan:
    """Return the providers to try for `device`, of those in this build of ONNX Runtime.

    Raises:
        UnsupportedModelError: The device does not exist.
        FailedPreconditionError: The build has no provider for it; the message names a build that
            has.
    """
    selected = as_device(device)
    tried = tuple(name for name in _TRIED[selected] if name in available)
    needed = _ONE_OF[selected]
    if needed and not set(needed) & set(available):
        packages = sorted({_PACKAGES[name] for name in needed})
        reason = (
            f"this build of ONNX Runtime has only {', '.join(map(short, available))}; "
            f"install {' or '.join(packages)} instead"
        )
        raise unavailable(device, reason)
    others = (name for name in available if name not in (*tried, CPU))
    return ProviderPlan(
        tried=tried, unused={short(name): _why_unused(name, selected) for name in others}
    )


def check_used(device: str, used: Collection[str], failed: dict[str, str]) -> None:
    """Check that the requested device runs the model.

    Raises:
        FailedPreconditionError: Another device runs it; the message says why.
    """
    needed = _ONE_OF[as_device(device)]
    if needed and not set(needed) & set(used):
        reasons = "; ".join(f"{short(name)}: {reason}" for name, reason in failed.items())
        raise unavailable(device, reasons or "ONNX Runtime did not start it")


def as_device(device: str) -> Device:
    """Return the device of a name.

    Raises:
        UnsupportedModelError: The name is unknown.
    """
    try:
        return Device(device)
    except ValueError:
        msg = f"there is no device '{device}'; use one of {', '.join(Device)}"
        raise UnsupportedModelError(msg) from None


def unavailable(device: str, reason: str) -> FailedPreconditionError:
    """Return the error for a requested device that is not available."""
    return FailedPreconditionError(
        f"device '{device}' was requested but is not available: {reason}. `device: auto` "
        "falls back to the CPU"
    )


def short(provider: str) -> str:
    """Return the short name of a provider: `CUDA`."""
    return provider.removesuffix(_SUFFIX)


def lacks_gpu(devices: Path = _DEVICES, driver: str = _DRIVER) -> bool:
    """Whether there is certainly no NVIDIA GPU: neither its device files nor its driver.

    If its providers are requested anyway, ONNX Runtime prints a page of errors about libraries.
    """
    if _has_gpu_file(devices):
        return False
    try:
        ctypes.CDLL(driver)
    except OSError:
        return True
    return False


def _has_gpu_file(devices: Path) -> bool:
    return any(any(devices.glob(pattern)) for pattern in _GPU_FILES)


def why_not_started(provider: str, libraries: Path, devices: Path = _DEVICES) -> str:
    """Return why ONNX Runtime skipped a provider, which it does silently.

    Args:
        libraries: The directory of its shared libraries.
        devices: The directory of device files.
    """
    if provider in NEEDS_GPU and not _has_gpu_file(devices):
        return NO_GPU
    name = _LIBRARIES.get(provider)
    if name is None or not (libraries / name).exists():
        return "ONNX Runtime did not start it"
    try:
        ctypes.CDLL(str(libraries / name))
    except OSError as error:
        return f"its library cannot be loaded: {error}"
    return "ONNX Runtime did not start it: there is no such device, or its driver does not match"


def _why_unused(provider: str, device: Device) -> str:
    if provider in _TRIED[Device.AUTO]:
        return f"device '{device}' was requested"
    return _WHY_UNUSED.get(provider, "it is used only on request")
