"""Run one batch with one kind of model."""

import os

# From 1.29 on ONNX Runtime sends its makers what is loaded, from a thread that a fork breaks; it
# reads this once, when it is imported. Whoever wants to send sets it to 0.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from headrace.runtimes.base import LoadOptions, Model, Runtime
from headrace.runtimes.padding import (
    OutputLengthAxes,
    VerifiedPadding,
    find_padding,
    pad_inputs,
    verify_padding,
)
from headrace.runtimes.plugins import (
    ENTRY_POINT_GROUP,
    code_of_model,
    detect_runtime,
    get_runtime,
    inspect_model,
    load_model,
    runs_code,
    runtime_names,
)
from headrace.runtimes.probe import Probe, difference_ratio, probe_batch
from headrace.runtimes.python_class import PythonModel

__all__ = [
    "ENTRY_POINT_GROUP",
    "LoadOptions",
    "Model",
    "OutputLengthAxes",
    "Probe",
    "PythonModel",
    "Runtime",
    "VerifiedPadding",
    "code_of_model",
    "detect_runtime",
    "difference_ratio",
    "find_padding",
    "get_runtime",
    "inspect_model",
    "load_model",
    "pad_inputs",
    "probe_batch",
    "runs_code",
    "runtime_names",
    "verify_padding",
]
