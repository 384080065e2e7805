"""Details of models with a graph (ONNX, SavedModel, TFLite, OpenVINO), by the runtimes' readers."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Final
from xml.parsers import expat

from headrace.advise.inventory.asset import AssetProblem, AssetProblemKind, Details, problem
from headrace.runtimes.file_bytes import BrokenFileError, FileReader, FlatbufferTable, fields
from headrace.runtimes.onnx.facts import TensorInfo, onnx_facts
from headrace.runtimes.openvino import read_ir, xml_parser
from headrace.runtimes.tensorflow.savedmodel_file import Named, meta_graphs, variables_problem
from headrace.runtimes.tensorflow.savedmodel_graph import unsafe_in
from headrace.runtimes.tensorflow.tflite import DATATYPES

_KNOWN_DOMAINS: Final = frozenset(
    {
        *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten"),
    }
)
_LITE_TYPES: Final = {
    **{number: datatype.value for number, datatype in DATATYPES.items()},
    5: "BYTES",
    8: "COMPLEX64",
    17: "INT4",
    18: "BF16",
}
"""Datatypes of weights; DATATYPES are those of requests."""
_CODE: Final = frozenset({"PyFunc", "EagerPyFunc", "PyFuncStateless"})
_MAX_TABLES: Final = 200_000
_MAX_SHOWN: Final = 64
_CHUNK: Final = 1 << 16


class _StopError(Exception):
    """Stops the parser early."""


def looks_like_onnx(source: FileReader) -> bool:
    """Whether the file is a `ModelProto`: a version, a graph, and no unknown field."""
    head = source.head(2)
    if len(head) < 2 or head[0] != 0x08 or not 0 < head[1] <= 30:  # noqa: PLR2004  # ir_version
        return False
    numbers = {record.number for record in fields(source)}
    return 7 in numbers and numbers <= {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}  # noqa: PLR2004  # graph


def onnx_details(source: FileReader, *, max_opset: int | None) -> Details:
    """Return signature, opset, producer and weights of an ONNX file.

    Args:
        max_opset: The newest opset of the installed ONNX Runtime; None if unknown.

    Raises:
        BrokenFileError: The file is damaged.
    """
    facts = onnx_facts(source)
    opset = facts.opset or None
    problems = []
    if opset is not None and max_opset is not None and opset > max_opset:
        message = f"opset {opset}; the installed ONNX Runtime supports opsets up to {max_opset}"
        problems.append(problem(AssetProblemKind.OPSET_TOO_NEW, message))
    custom = sorted(domain for domain in facts.opsets if domain not in _KNOWN_DOMAINS)
    if custom:
        message = f"needs operators of {', '.join(custom[:8])}"
        problems.append(problem(AssetProblemKind.CUSTOM_OPERATORS, message))
    return Details(
        inputs=tuple(facts.inputs[:_MAX_SHOWN]),
        outputs=tuple(facts.outputs),
        opset=opset,
        producer=facts.producer,
        weights=dict(facts.weights),
        quantised=True if facts.is_quantized else None if facts.weights else False,
        notes={"ir_version": str(facts.ir_version), "nodes": str(facts.operators.total())},
        parts=tuple(sorted(facts.external)),
        problems=(*problems, *_external_problems(source.path, facts.external)),
    )


def _external_problems(path: Path, external: dict[str, int]) -> list[AssetProblem]:
    problems = []
    folder = path.parent.resolve()
    for location, end in sorted(external.items()):
        target = folder / location
        try:
            is_inside = "\0" not in location and target.resolve().is_relative_to(folder)
            size = target.stat().st_size if is_inside and target.is_file() else None
        except OSError:
            is_inside, size = True, None
        if not is_inside:
            message = f"its weights are in {location[:200]!r}, outside of its folder"
            problems.append(problem(AssetProblemKind.EXTERNAL_OUTSIDE, message))
        elif size is None:
            message = f"its weights are in {location[:200]!r}, which does not exist"
            problems.append(problem(AssetProblemKind.MISSING_PART, message))
        elif size < end:
            message = f"{location[:200]!r} has {size} bytes; its weights end at {end}"
            problems.append(problem(AssetProblemKind.MISSING_PART, message))
    return problems


def looks_like_saved_model(source: FileReader) -> bool:
    """Whether the file is a `SavedModel`: a version and graphs."""
    if source.head(3) not in {b"\x08\x01\x12", b"\x08\x00\x12"}:
        return False
    numbers = {record.number for record in fields(source)}
    return numbers == {1, 2}


def saved_model_details(source: FileReader, folder: Path) -> Details:
    """Return the serving signature of a SavedModel, and problems of its graph.

    Raises:
        BrokenFileError: The file is damaged.
    """
    graphs = meta_graphs(source)
    signatures = {name: both for graph in graphs for name, both in graph.signatures.items()}
    inputs, outputs = signatures.get("serving_default") or next(iter(signatures.values()), ((), ()))
    operators = {
        operator
        for graph in graphs
        for body in (*graph.graph.nodes.values(), *graph.graph.functions.values())
        for operator in body.operators
    }
    problems = []
    if code := sorted(_CODE & operators):
        problems.append(
            problem(AssetProblemKind.RUNS_CODE, f"its graph calls Python: {', '.join(code)}")
        )
    if files := [name for name in unsafe_in(operators) if name not in _CODE]:
        message = f"its graph accesses files or the network: {', '.join(files[:8])}"
        problems.append(problem(AssetProblemKind.DANGEROUS_CODE, message))
    if lacking := variables_problem(folder / "variables"):
        problems.append(problem(AssetProblemKind.MISSING_PART, lacking))
    version = next((graph.version for graph in graphs if graph.version), "")
    tags = [tag for graph in graphs for tag in graph.tags]
    return Details(
        inputs=_by_name(inputs),
        outputs=_by_name(outputs),
        producer=f"tensorflow {version}" if version else "",
        notes={"tags": ", ".join(tags[:8]), "signatures": ", ".join(sorted(signatures)[:16])},
        problems=tuple(problems),
    )


def _by_name(tensors: Sequence[Named]) -> tuple[TensorInfo, ...]:
    """Return tensors sorted by name, as protobuf maps are unordered."""
    return tuple(
        TensorInfo(name=tensor.name, datatype=tensor.datatype or "?", shape=tensor.shape)
        for tensor in sorted(tensors[:_MAX_SHOWN], key=lambda tensor: tensor.name)
    )


def tflite_details(source: FileReader) -> Details:
    """Return inputs, outputs and weights of a TFLite file.

    Raises:
        BrokenFileError: The file is damaged.
    """
    with (
        source.path.open("rb") as stream,
        mmap(stream.fileno(), 0, access=ACCESS_READ) as data,
    ):
        try:
            return _lite_details(FlatbufferTable.root(data))
        except ValueError as error:
            raise BrokenFileError(f"is truncated or damaged: {error}") from error


def _lite_details(model: FlatbufferTable) -> Details:
    graphs = [graph for graph, _ in zip(model.tables(2), range(_MAX_SHOWN), strict=False)]
    if model.length(4) + sum(graph.length(0) for graph in graphs) > _MAX_TABLES:
        raise BrokenFileError(f"has more than {_MAX_TABLES} tables")
    buffers = [buffer.length(0) or int(buffer.number(2, "<Q", 0)) for buffer in model.tables(4)]
    weights: Counter[str] = Counter()
    sides: list[tuple[TensorInfo, ...]] = []
    for graph in graphs:
        tensors = list(graph.tables(0))
        for tensor in tensors:
            buffer = int(tensor.number(2, "<I", 0))
            if 0 < buffer < len(buffers) and buffers[buffer]:
                weights[_lite_type(tensor)] += buffers[buffer]
        sides += [_lite_tensors(tensors, graph, side) for side in (1, 2)]
    codes = [code.text(1) for code, _ in zip(model.tables(1), range(1000), strict=False)]
    custom = sorted({code for code in codes if code})
    message = f"needs the operators {', '.join(custom[:8])}"
    return Details(
        inputs=sides[0] if sides else (),
        outputs=sides[1] if sides else (),
        producer=model.text(3),
        weights=dict(weights),
        quantised=None if weights else False,
        problems=(problem(AssetProblemKind.CUSTOM_OPERATORS, message),) if custom else (),
    )


def _lite_type(tensor: FlatbufferTable) -> str:
    return _LITE_TYPES.get(int(tensor.number(1, "<b", 0)), "?")


def _lite_tensors(
    tensors: Sequence[FlatbufferTable], graph: FlatbufferTable, side: int
) -> tuple[TensorInfo, ...]:
    tensors_info = []
    for index in graph.array(side, "<i4").tolist()[:_MAX_SHOWN]:
        if not 0 <= index < len(tensors):
            raise BrokenFileError("is damaged: it refers to a tensor that does not exist")
        tensor = tensors[index]
        shape = tensor.array(7, "<i4").tolist() or tensor.array(0, "<i4").tolist()
        info = TensorInfo(
            name=tensor.text(3), datatype=_lite_type(tensor), shape=tuple(shape[:_MAX_SHOWN])
        )
        tensors_info.append(info)
    return tuple(tensors_info)


def xml_root(source: FileReader) -> str:
    """Return the name of the root element of an XML file; empty if it is not XML."""
    if not source.head(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return ""
    name = [""]

    def start(element: str, _: dict[str, str]) -> None:
        name[0] = element
        raise _StopError

    parser = xml_parser()
    parser.StartElementHandler = start
    with contextlib.suppress(expat.ExpatError, BrokenFileError, _StopError):
        parser.Parse(source.head(_CHUNK), True)  # noqa: FBT003  # expat's own signature: the end
    return name[0]


def openvino_details(source: FileReader) -> Details:
    """Return inputs, outputs and weights of an OpenVINO IR, and whether its `.bin` is complete.

    Raises:
        BrokenFileError: The file is damaged.
    """
    try:
        model = read_ir(source)
    except expat.ExpatError as error:
        raise BrokenFileError("is truncated or damaged: not complete XML") from error
    weights_file = source.path.with_suffix(".bin")
    return Details(
        inputs=tuple(model.inputs),
        outputs=tuple(model.outputs),
        producer=f"openvino IR {model.version}".strip(),
        weights={name: size for name, size in model.weights.items() if size},
        quantised=True if model.is_quantised else None if model.weights else False,
        notes={"name": model.name[:100]},
        parts=(weights_file.name,) if model.end_bytes else (),
        problems=tuple(_bin_problems(weights_file, model.end_bytes)),
    )


def _bin_problems(file: Path, end: int) -> list[AssetProblem]:
    if not end:
        return []
    try:
        size = file.stat().st_size
    except OSError:
        return [problem(AssetProblemKind.MISSING_PART, f"its weights, {file.name}, do not exist")]
    if size < end:
        message = f"{file.name} has {size} bytes; its weights end at {end}"
        return [problem(AssetProblemKind.MISSING_PART, message)]
    return []
