"""TFLite's files as ONNX, by tf2onnx. Imported only where LiteRT, TensorFlow and tf2onnx are."""

from functools import partial
from pathlib import Path
from typing import Final

from ai_edge_litert.interpreter import Interpreter
from tf2onnx import convert

from headrace.optimize.convert_graph import check_operators
from headrace.optimize.sources import Graph, Source, Way, computes_in, with_version
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.tflite_file import Place, TfliteFile, find_tflite_file, read_tflite

OPSET: Final = 17
_HINT: Final = "The file is served as it is, without --convert"


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A `.tflite` file; nothing in it runs."""
    del allow_code
    file = find_tflite_file(path)
    model = load_model(path, "tflite", LoadOptions(device="cpu"))
    convert = partial(_convert, file, read_tflite(file))
    return Source(
        model=model,
        ways=(Way(computes=computes_in(model.signature), convert=convert),),
        converter=with_version("tf2onnx"),
        library=with_version("ai-edge-litert"),
        hint=_HINT,
        takes_missing=False,
    )


def _convert(file: Path, found: TfliteFile) -> Graph:
    reader = Interpreter(model_content=found.data)
    names = {one["index"]: one["name"] for one in reader.get_tensor_details()}

    def tensors(places: tuple[Place, ...]) -> list[str]:
        return [names[one.tensor] for one in places]

    graph, _ = convert.from_tflite(
        str(file),
        input_names=tensors(found.inputs),
        output_names=tensors(found.outputs),
        opset=OPSET,
    )
    check_operators(graph)
    return graph
