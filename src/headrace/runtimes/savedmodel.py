"""Run SavedModels: with TensorFlow where it is installed, else with OpenVINO."""

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from headrace.core import FailedPreconditionError
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.openvino_model import OpenvinoModel, open_openvino
from headrace.runtimes.savedmodel_file import looks_like_savedmodel, read_savedmodel
from headrace.runtimes.tabular import refuse
from headrace.runtimes.tensorflow_model import open_tensorflow

_log = logging.getLogger(__name__)


class SavedmodelRuntime:
    """Loads a directory with a `saved_model.pb`."""

    name = "savedmodel"
    runs_code = False
    optional_libraries = ("tensorflow",)

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like a SavedModel, by its names and first bytes."""
        return looks_like_savedmodel(path)

    def code_in(self, path: Path) -> str:
        """Which of the graph's operators reach beyond it; empty if none does."""
        unsafe = read_savedmodel(path).unsafe
        if not unsafe:
            return ""
        names = ", ".join(unsafe[:8])
        return f"its graph reaches for files, Python or the network ({names})"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model with what is installed."""
        return _open(path, options)


def open_by_openvino(path: Path, options: LoadOptions) -> OpenvinoModel:
    """A SavedModel run by OpenVINO, with the names of its signature.

    Raises:
        UnsupportedModelError: It cannot be served so; the message says why.
    """
    found = read_savedmodel(path)
    if found.unsafe:
        names = ", ".join(found.unsafe[:8])
        raise refuse(path, f"OpenVINO has none of its operators {names}; TensorFlow is needed")
    known = {one.name for one in (*found.inputs, *found.outputs)}

    def named(names: Sequence[str], own: str) -> str:
        return next((name for name in names if name in known), own)

    model = open_openvino(path, options, named=named)
    for kind, wanted, got in (
        ("input", found.inputs, model.signature.inputs),
        ("output", found.outputs, model.signature.outputs),
    ):
        lost = {one.name for one in wanted} ^ {one.name for one in got}
        if lost:
            model.close()
            names = ", ".join(sorted(lost)[:8])
            raise refuse(path, f"OpenVINO lost its {kind}s {names}; install headrace[tensorflow]")
    return model


def _open(path: Path, options: LoadOptions) -> Model:
    if importlib.util.find_spec("tensorflow") is not None:
        found = read_savedmodel(path)
        if found.assigns:
            names = ", ".join(found.assigns[:8])
            _log.warning("%s keeps a state that all callers share (%s)", path.name, names)
        return open_tensorflow(path, found, options)
    if importlib.util.find_spec("openvino") is not None:
        return open_by_openvino(path, options)
    msg = (
        "the runtime 'savedmodel' needs TensorFlow or OpenVINO, and neither is installed: "
        "pip install 'headrace[tensorflow]' runs every model, 'headrace[openvino]' is smaller "
        "and starts sooner"
    )
    raise FailedPreconditionError(msg)
