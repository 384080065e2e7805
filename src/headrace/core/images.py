"""Container images of replicas by runtime and device; `make images` builds them."""

from collections.abc import Mapping
from typing import Final

from headrace.core.devices import GPUS, Device
from headrace.core.errors import FailedPreconditionError

IMAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("catboost", "lightgbm", "sklearn", "xgboost"), "replica-trees"),
    **dict.fromkeys(("huggingface", "pipeline"), "replica-pipeline"),
    **dict.fromkeys(("savedmodel", "tflite"), "replica-tensorflow"),
    **dict.fromkeys(("torch_export", "torchscript"), "replica-torch"),
    "gguf": "replica-llm",
    "openvino": "replica-openvino",
}
"""Image of each runtime whose libraries are not in the image `replica`."""
GPU_IMAGES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("", "onnx", "optimized"), "replica-gpu"),
    **dict.fromkeys(("torch_export", "torchscript"), "replica-torch"),
}
"""Image of each runtime that runs on a GPU; the empty runtime is detected."""


OPENAI_RUNTIMES: Final = frozenset({"gguf"})
"""Runtimes whose replicas serve OpenAI's API, on a second socket."""


def image_name(runtime: str, device: Device, *, has_gpu: bool) -> str:
    """Return the image without registry and version.

    Args:
        has_gpu: Whether the container has a GPU. Without one of `GPUS` as `device` the model may
            use it, and needs no GPU image.

    Raises:
        FailedPreconditionError: No image runs such models on this device.
    """
    name = IMAGES.get(runtime, "replica")
    images = {Device.TENSORRT: {}, Device.OPENVINO: {"openvino": name}}.get(device, GPU_IMAGES)
    if has_gpu or device in GPUS:
        name = images.get(runtime, name)
    needs_image = device in (*GPUS, Device.OPENVINO)
    if needs_image and runtime not in images:
        raise FailedPreconditionError(
            f"no image of Headrace runs models of runtime {runtime or 'auto'} on device {device}: "
            "set `kubernetes.image`, or another `device`"
        )
    return name
