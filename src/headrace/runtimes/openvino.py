"""Run OpenVINO's own format, and others that it reads where it is named, with OpenVINO."""

from pathlib import Path

from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.openvino_file import Kind, find_openvino_file, looks_like_openvino
from headrace.runtimes.openvino_model import OpenvinoModel, open_openvino, shortest_name
from headrace.runtimes.savedmodel import open_by_openvino


class OpenvinoRuntime:
    """Loads an IR (`.xml` and `.bin`); named, also ONNX, SavedModels, `.tflite` and Paddle."""

    name = "openvino"
    runs_code = False
    libraries = ("openvino",)
    extra = "openvino"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is an IR, by its name and first element."""
        return looks_like_openvino(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Compile the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> OpenvinoModel:
    found = find_openvino_file(path)
    if found.kind is Kind.SAVEDMODEL:
        return open_by_openvino(found.path, options)
    return open_openvino(found.path, options, named=shortest_name)
