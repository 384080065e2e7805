"""Runtimes: each runs batches with one kind of model. Imports `observe` and below."""

import os

# From 1.29 on ONNX Runtime reports loaded models to its makers, from a thread that a fork breaks.
# It reads this variable once, when it is imported. Set it to 0 to allow the reports.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from headrace.runtimes.base import DeadlineModel, LoadOptions, Model, Runtime
from headrace.runtimes.padding import (
    OutputLengthAxes,
    VerifiedPadding,
    find_padding,
    mask_input,
    pad_inputs,
    verify_padding,
)
from headrace.runtimes.plugins import (
    ENTRY_POINT_GROUP,
    code_of_model,
    detect_runtime,
    framework_named,
    generated_inputs,
    get_runtime,
    inspect_model,
    load_model,
    runs_code,
    runtime_names,
    usable_runtimes,
)
from headrace.runtimes.probe import BatchProbe, difference_ratio, probe_batch
from headrace.runtimes.python import PythonModel, where_it_failed

__all__ = [
    "ENTRY_POINT_GROUP",
    "BatchProbe",
    "DeadlineModel",
    "LoadOptions",
    "Model",
    "OutputLengthAxes",
    "PythonModel",
    "Runtime",
    "VerifiedPadding",
    "code_of_model",
    "detect_runtime",
    "difference_ratio",
    "find_padding",
    "framework_named",
    "generated_inputs",
    "get_runtime",
    "inspect_model",
    "load_model",
    "mask_input",
    "pad_inputs",
    "probe_batch",
    "runs_code",
    "runtime_names",
    "usable_runtimes",
    "verify_padding",
    "where_it_failed",
]
