"""ONNX conversion of TensorFlow's SavedModels (including Keras') and TFLite files, by tf2onnx.

Imported only where TensorFlow and tf2onnx are installed, and before TensorFlow: without AVX-512 it
convolves with its own kernels unless told otherwise, whose errors of 1e-3 would be taken for the
converted model's.
"""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # read once, at import

import tensorflow as tf
from tensorflow.python.grappler import tf_optimizer
from tf2onnx import convert, tf_loader

from headrace.optimize.convert.graph import check_operators
from headrace.optimize.sources import ConversionSource, Graph, Way, computes_in, with_version
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.tables.tabular import refuse
from headrace.runtimes.tensorflow.savedmodel import open_session, open_tensorflow
from headrace.runtimes.tensorflow.savedmodel_file import SavedModelFile, read_savedmodel
from headrace.runtimes.tensorflow.tflite import (
    TensorSlot,
    TfliteFile,
    find_tflite_file,
    read_tflite,
)

_OPSET: Final = 17
_MAX_NAMES: Final = 8
_OPTIONS: Final = LoadOptions(device="cpu")
_TFLITE_HINT: Final = "The file is served unchanged without --convert"


def open_savedmodel(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a directory with a `saved_model.pb`; the caller has checked that code is allowed."""
    del allow_code
    saved_model = read_savedmodel(path)
    if saved_model.assigns:
        names = ", ".join(saved_model.assigns[:_MAX_NAMES])
        description = f"keeps state between requests ({names}), which ONNX does not support"
        raise refuse(
            path, f"{description}; let it take the state as an input and give it as an output"
        )
    model = open_tensorflow(path, saved_model, _OPTIONS)
    way = Way(
        computes=computes_in(model.signature),
        convert=partial(_converted_savedmodel, path, saved_model),
    )
    return ConversionSource(
        model=model,
        ways=(way,),
        converter=with_version("tf2onnx"),
        library=with_version("tensorflow", "tensorflow-cpu"),
        takes_missing=False,
    )


def _converted_savedmodel(path: Path, saved_model: SavedModelFile) -> Graph:
    """Convert by the graph, as tf2onnx's loader fails on models of older versions."""
    inputs = [value.tensor for value in saved_model.inputs]
    outputs = [value.tensor for value in saved_model.outputs]
    with open_session(path, _OPTIONS) as session:
        frozen = tf_loader.freeze_session(session, input_names=inputs, output_names=outputs)
    flat = _inlined(frozen, [*inputs, *outputs])
    graph, _ = convert.from_graph_def(flat, input_names=inputs, output_names=outputs, opset=_OPSET)
    check_operators(graph)
    return graph


def _inlined(graph: Any, tensors: Sequence[str]) -> Any:  # noqa: ANN401  # ships no types
    """Return a graph with inlined functions, as tf2onnx does not support calls.

    tf2onnx inlines them itself, but not in graphs of a few nodes, such as a single call.
    """
    settings = tf.compat.v1.ConfigProto()
    rewrite = settings.graph_options.rewrite_options
    rewrite.min_graph_nodes = -1
    rewrite.function_optimization = rewrite.AGGRESSIVE
    rewrite.optimizers.append("function")
    with tf.Graph().as_default():
        meta = tf.compat.v1.train.export_meta_graph(graph_def=graph)
    meta.collection_def["train_op"].node_list.value.extend(tensors)
    return tf_optimizer.OptimizeGraph(settings, meta)


def open_tflite(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a `.tflite` file, which holds no code."""
    del allow_code
    file = find_tflite_file(path)
    model = load_model(path, "tflite", _OPTIONS)
    return ConversionSource(
        model=model,
        ways=(
            Way(
                computes=computes_in(model.signature),
                convert=partial(_converted_tflite, file, read_tflite(file)),
            ),
        ),
        converter=with_version("tf2onnx"),
        library=with_version("ai-edge-litert"),
        hint=_TFLITE_HINT,
        takes_missing=False,
    )


def _converted_tflite(file: Path, model_file: TfliteFile) -> Graph:
    from ai_edge_litert.interpreter import Interpreter  # noqa: PLC0415  # only TFLite needs it

    reader = Interpreter(model_content=model_file.data)
    names = {detail["index"]: detail["name"] for detail in reader.get_tensor_details()}

    def tensors(slots: tuple[TensorSlot, ...]) -> list[str]:
        return [names[slot.tensor] for slot in slots]

    graph, _ = convert.from_tflite(
        str(file),
        input_names=tensors(model_file.inputs),
        output_names=tensors(model_file.outputs),
        opset=_OPSET,
    )
    check_operators(graph)
    return graph
