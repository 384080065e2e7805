"""Runtime of SavedModels: with TensorFlow where it is installed, else with OpenVINO."""

import importlib.util
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import FailedPreconditionError, ModelSignature, RuntimeFailedError, Tensors
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.openvino import import_openvino, open_by_openvino
from headrace.runtimes.probe import probe_batch
from headrace.runtimes.rows.openvino import analyse_openvino
from headrace.runtimes.rows.values import RowVerdict
from headrace.runtimes.tables.tabular import import_library, refuse
from headrace.runtimes.tensorflow.savedmodel_file import (
    SERVE,
    SavedModelFile,
    looks_like_savedmodel,
    read_savedmodel,
)

_ERRORS_ONLY: Final = "2"


class TensorflowModel:
    """A session with a loaded graph. Thread-safe, as sessions are; they release the GIL."""

    concurrent = True

    def __init__(self, session: Any, file: SavedModelFile, signature: ModelSignature) -> None:  # noqa: ANN401  # ships no types that mypy reads
        self.signature = signature
        self._session: Any = session
        self._inputs = [tensor.name for tensor in file.inputs]
        self._outputs = [tensor.name for tensor in file.outputs]
        # One callable for all outputs: TensorFlow never frees the one it creates for each
        # selection.
        self._call: Any = session.make_callable(
            [tensor.tensor for tensor in file.outputs], [tensor.tensor for tensor in file.inputs]
        )

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch in the caller's thread."""
        call = self._call
        if call is None:
            raise RuntimeFailedError("the model is closed")
        try:
            values = call(*(inputs[name] for name in self._inputs))
        except Exception as error:
            # TensorFlow also reports failures in the middle of the graph as the caller's mistake.
            raise RuntimeFailedError(f"the model failed: {reason_of(error)}") from error
        answers = {
            name: np.asarray(value) for name, value in zip(self._outputs, values, strict=True)
        }
        return {name: answers[name] for name in outputs} if outputs else answers

    def close(self) -> None:
        """Close the session; may be called again."""
        self._call = None
        if self._session is not None:
            self._session.close()
            self._session = None


def open_tensorflow(path: Path, file: SavedModelFile, options: LoadOptions) -> TensorflowModel:
    """Load and test a SavedModel that was read.

    Raises:
        UnsupportedModelError: TensorFlow refuses it.
    """
    inputs, outputs = file.specs(path)
    session = open_session(path, options)
    try:
        declared = ModelSignature(inputs=inputs, outputs=outputs, batched=False)
        model = TensorflowModel(session, file, declared)
    except Exception as error:
        session.close()
        raise refuse(path, f"TensorFlow refuses it: {reason_of(error)}") from error
    has_openvino = importlib.util.find_spec("openvino") is not None
    probe = probe_batch(
        model.run,
        inputs,
        outputs,
        analyse=(lambda: _analysed(path, file)) if has_openvino else None,
        declared=options.declared_by,
    )
    if not probe.batched or probe.variable is None:
        how = "batched" if probe.batched else "unbatched"
        _log.info("%s is served %s: %s", path.name, how, probe.reason)
    model.signature = probe.signature(inputs)
    return model


def _analysed(path: Path, file: SavedModelFile) -> RowVerdict:
    """Return the verdict on the graph as read by OpenVINO; TensorFlow runs it."""
    inputs, outputs = file.specs(path)
    try:
        model = import_openvino().Core().read_model(path)
        ordered = [
            [next(spec for spec in specs if spec.name in port.names) for port in ports]
            for specs, ports in ((inputs, model.inputs), (outputs, model.outputs))
        ]
    except (RuntimeError, StopIteration):
        return RowVerdict(why_not="OpenVINO, which reads graphs for the analysis, cannot read it")
    return analyse_openvino(model, *ordered)


def open_session(path: Path, options: LoadOptions) -> Any:  # noqa: ANN401  # ships no types that mypy reads
    """Return an open session with a SavedModel's graph, loaded as in TensorFlow Serving.

    Keras and `tf.saved_model.load` rebuild Python objects, which fails for files of older versions;
    the graph alone still loads.

    Raises:
        UnsupportedModelError: TensorFlow refuses it.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", _ERRORS_ONLY)  # read once, at import
    library = import_library("tensorflow", "tensorflow")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # TensorFlow calls it deprecated
    v1 = library.compat.v1
    session = v1.Session(graph=library.Graph(), config=_settings(v1, options))
    try:
        with session.graph.as_default():
            v1.saved_model.load(session, [SERVE], str(path))
    except Exception as error:
        session.close()
        raise refuse(path, f"TensorFlow refuses it: {reason_of(error)}") from error
    return session


def _settings(v1: Any, options: LoadOptions) -> Any:  # noqa: ANN401  # ships no types that mypy reads
    settings = v1.ConfigProto(
        intra_op_parallelism_threads=max(1, options.intra_op_threads),
        # A negative number runs in the caller's thread; runs are concurrent anyway.
        inter_op_parallelism_threads=-1,
        use_per_session_threads=True,
    )
    if options.device == "cpu":
        settings.device_count["GPU"] = 0
    return settings


_log = logging.getLogger(__name__)


class SavedmodelRuntime:
    """Loader of a directory with a `saved_model.pb`."""

    name = "savedmodel"
    runs_code = False
    optional_libraries = ("tensorflow",)

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like a SavedModel, by its names and first bytes."""
        return looks_like_savedmodel(path)

    def code_in(self, path: Path) -> str:
        """Return the graph's operators that access files, Python or the network; empty for none."""
        unsafe = read_savedmodel(path).unsafe
        if not unsafe:
            return ""
        names = ", ".join(unsafe[:8])
        return f"its graph accesses files, Python or the network ({names})"

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model with the installed library."""
        if importlib.util.find_spec("tensorflow") is not None:
            file = read_savedmodel(path)
            if file.assigns:
                names = ", ".join(file.assigns[:8])
                _log.warning("%s keeps state that all callers share (%s)", path.name, names)
            return open_tensorflow(path, file, options)
        if importlib.util.find_spec("openvino") is not None:
            return open_by_openvino(path, options)
        raise FailedPreconditionError(
            "the runtime 'savedmodel' needs TensorFlow or OpenVINO, but neither is "
            "installed: pip install 'headrace[tensorflow]' runs every model, "
            "'headrace[openvino]' is smaller and starts faster"
        )
