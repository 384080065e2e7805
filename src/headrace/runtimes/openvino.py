"""Runtime of OpenVINO, on the CPU: its own format, and others that it reads if named explicitly.

A file is checked before OpenVINO reads it: external weights outside of the `.bin` or the directory,
XML entities, unbounded nesting, and impossible list sizes are refused.
"""

import logging
import math
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from types import ModuleType
from typing import Any, Final
from xml.parsers import expat

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
    error_kind,
)
from headrace.runtimes.base import PRECISIONS, LoadOptions, Model, check_tuning
from headrace.runtimes.file_bytes import BrokenFileError, FileReader, fields, inside, visible_files
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.onnx.facts import TensorInfo
from headrace.runtimes.onnx.file import find_onnx_file, scan_onnx
from headrace.runtimes.probe import probe_batch
from headrace.runtimes.rows.openvino import analyse_openvino
from headrace.runtimes.tables.tabular import (
    check_input_sizes,
    corrupt,
    import_library,
    read_head,
    refuse,
)
from headrace.runtimes.tensorflow.savedmodel_file import looks_like_savedmodel, read_savedmodel
from headrace.runtimes.tensorflow.tflite import read_tflite

_DATATYPES: Final = {
    "boolean": Datatype.BOOL,
    "u8": Datatype.UINT8,
    "u16": Datatype.UINT16,
    "u32": Datatype.UINT32,
    "u64": Datatype.UINT64,
    "i8": Datatype.INT8,
    "i16": Datatype.INT16,
    "i32": Datatype.INT32,
    "i64": Datatype.INT64,
    "f16": Datatype.FP16,
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
}
_PRECISION: Final = "INFERENCE_PRECISION_HINT"
_NOISE: Final = re.compile(r"(Exception from|Check '.*?' failed at) \S+?:\d+:?|Exception from \S+")
_log = logging.getLogger(__name__)
Named = Callable[[Sequence[str], str], str]


class OpenvinoModel:
    """A compiled model. Thread-safe: each run uses a separate infer request."""

    concurrent = True

    def __init__(self, compiled: Any, tensor: Any, signature: ModelSignature) -> None:  # noqa: ANN401  # ships no types that mypy reads
        self.signature = signature
        self._compiled: Any = compiled
        self._tensor = tensor
        self._idle: list[Any] = [compiled.create_infer_request()]
        self._is_stateful = bool(self._idle[0].query_state())
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = {spec.name: index for index, spec in enumerate(signature.outputs)}

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; a failed run discards its request."""
        compiled = self._compiled
        if compiled is None:
            raise RuntimeFailedError("the model is closed")
        try:
            # Append and pop are atomic, and a thread that gets no request creates one: no lock is
            # needed.
            request = self._idle.pop() if self._idle else compiled.create_infer_request()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            if self._is_stateful:
                request.reset_state()  # one caller's inputs must not reach the next one
            for index, name in enumerate(self._inputs):
                request.set_input_tensor(index, self._wrap(inputs[name]))
            request.infer(share_outputs=True)
            answers = {
                name: request.get_output_tensor(self._outputs[name]).data.copy()
                for name in outputs or self._outputs
            }
        except Exception as error:
            # The binding raises RuntimeError for everything.
            raise RuntimeFailedError(f"the model failed: {openvino_reason(error)}") from error
        self._idle.append(request)
        return answers

    def close(self) -> None:
        """Free the requests and the compiled model; may be called again."""
        self._compiled = None
        self._idle.clear()

    def _wrap(self, array: Array) -> Any:  # noqa: ANN401  # ships no types that mypy reads
        """Return OpenVINO's tensor of an array, copying one that is read-only or not in order."""
        return self._tensor(array, shared_memory=array.flags.carray)


def open_openvino(path: Path, options: LoadOptions, *, named: Named) -> OpenvinoModel:
    """Read, compile and test a model whose file was checked.

    Args:
        path: In the form that OpenVINO takes.
        named: Returns a tensor's name for callers from its names and OpenVINO's name of its node.

    Raises:
        UnsupportedModelError: It cannot be served, or its tuning is not supported; the message says
            why.
    """
    check_tuning(options.tuning)
    library = import_openvino()
    core = library.Core()
    try:
        # Without a named format OpenVINO tries all parsers in turn; the one of TensorFlow's text
        # format prints unparsable content to standard error.
        if path.suffix.lower() == ".onnx":
            frontends = import_library("openvino.frontend", "openvino").FrontEndManager()
            frontend = frontends.load_by_framework("onnx")
            model = frontend.convert(frontend.load(str(path)))
        else:
            model = core.read_model(path)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        # Errors about a graph that was read here first name operators; errors about an IR quote
        # values.
        is_read = path.suffix.lower() == ".onnx" or path.is_dir()
        description = openvino_reason(error) if is_read else error_kind(error)
        raise refuse(path, f"OpenVINO refuses it: {description}") from None
    inputs = _specs(path, "input", model.inputs, named)
    outputs = _specs(path, "output", model.outputs, named)
    _check(path, inputs, outputs)
    try:
        compiled = core.compile_model(model, "CPU", openvino_settings(model, options))
    except Exception as error:
        raise refuse(path, f"OpenVINO cannot compile it: {openvino_reason(error)}") from error
    _set_precision(path, compiled, options)
    declared = ModelSignature(inputs=inputs, outputs=outputs, batched=False)
    loaded = OpenvinoModel(compiled, library.Tensor, declared)
    probe = probe_batch(
        loaded.run,
        inputs,
        outputs,
        analyse=lambda: analyse_openvino(model, inputs, outputs),
        declared=options.declared_by,
    )
    if not probe.batched or probe.variable is None:
        how = "batched" if probe.batched else "unbatched"
        _log.info("%s is served %s: %s", path.name, how, probe.reason)
    loaded.signature = probe.signature(inputs)
    return loaded


def import_openvino() -> ModuleType:
    """Import OpenVINO without its telemetry, which would report each import to its makers.

    OpenVINO works without the telemetry package. If OpenVINO was imported before, its telemetry is
    left unchanged.

    Raises:
        FailedPreconditionError: It is not installed; the message says how to install it.
    """
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as import reads it: there is none
    return import_library("openvino", "openvino")


def openvino_reason(error: BaseException) -> str:
    """Return OpenVINO's message on one line, without source locations."""
    return reason_of(RuntimeError(_NOISE.sub("", str(error)).strip() or type(error).__name__))


def openvino_precision(model: Any) -> str:  # noqa: ANN401  # ships no types that mypy reads
    """Return OpenVINO's compute precision: the one the author set in the model, else `f32`.

    By default OpenVINO uses bf16 wherever the processor supports it, and results differ between
    machines and from the framework's.
    """
    info_path = ["runtime_options", _PRECISION]
    if not model.has_rt_info(info_path):
        return PRECISIONS[0]
    precision = str(model.get_rt_info(info_path).value).lower()
    if precision not in PRECISIONS:
        _log.warning("the model asks for the unknown precision %r", precision[:40])
        return PRECISIONS[0]
    return precision


def openvino_settings(model: Any, options: LoadOptions) -> Mapping[str, object]:  # noqa: ANN401
    """Return settings with one stream per `intra_op_threads` cores."""
    threads = max(1, options.threads)
    streams = max(1, len(os.sched_getaffinity(0)) // threads)
    return {
        _PRECISION: options.tuning.precision or openvino_precision(model),
        # OpenVINO would round activations of models with compressed weights to eight bits.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": streams * threads,
        # Fused attention (of 2026.4) gives wrong results for other lengths if it first ran on
        # length 1.
        **({"SNIPPETS_MODE": "DISABLE"} if model.is_dynamic() else {}),
        # Without this, each process pins itself to the same first cores.
        "ENABLE_CPU_PINNING": False,
    }


def _set_precision(path: Path, compiled: Any, options: LoadOptions) -> None:  # noqa: ANN401  # ships no types that mypy reads
    """Log if the processor lacks the requested precision and OpenVINO uses another."""
    precision = options.tuning.precision
    if not precision:
        return
    used = str(compiled.get_property(_PRECISION).get_type_name())
    if used != precision:
        _log.warning(
            "%s was tuned to compute in %s, which this processor does not support; OpenVINO"
            " uses %s, and measurements made elsewhere do not apply here",
            path.name,
            precision,
            used,
        )


def _specs(path: Path, kind: str, ports: Sequence[Any], named: Named) -> tuple[TensorSpec, ...]:
    specs = []
    for port in ports:
        node = port.get_node()
        own = (
            node.friendly_name
            if kind == "input"
            else node.input(0).get_source_output().get_node().friendly_name
        )
        name = named(sorted(port.names), own)
        datatype = _DATATYPES.get(port.get_element_type().get_type_name())
        if datatype is None:
            msg = (
                f"{kind} '{name}' is {port.get_element_type().get_type_name()}, which is not"
                " supported"
            )
            raise refuse(path, f"{msg}; cast it in the model")
        shape = port.get_partial_shape()
        if shape.rank.is_dynamic:
            if kind == "input":
                msg = f"input '{name}' has an unknown number of dimensions; convert the model"
                raise refuse(path, f"{msg} with the shapes of its inputs, -1 where they vary")
            specs.append(TensorSpec(name=name, datatype=datatype, shape=()))
            continue
        # By index: pybind11 ends an iteration with an exception that is a RuntimeError after
        # Pulsar's client was imported.
        sizes = [shape[axis] for axis in range(shape.rank.get_length())]
        sizes = [VARIABLE if size.is_dynamic else size.get_length() for size in sizes]
        specs.append(TensorSpec(name=name, datatype=datatype, shape=tuple(sizes)))
    return tuple(specs)


def _check(path: Path, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
    for specs, kind in ((inputs, "input"), (outputs, "output")):
        names = [spec.name for spec in specs]
        if not names:
            raise refuse(path, f"has no {kind}s")
        if len(set(names)) < len(names):
            raise refuse(path, f"calls two {kind}s alike ({', '.join(sorted(names))[:200]})")
    check_input_sizes(path, inputs)


def shortest_name(names: Sequence[str], own: str) -> str:
    """Return the name that the exporter intended: `input` rather than `serving_input:0`."""
    return min(names, key=lambda name: (":" in name, len(name), name), default=own)


_HEAD_BYTES: Final = 1024
_IR: Final = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*\?>\s*)?(<!--.*?-->\s*)*<net[\s>]", re.DOTALL
)
_USUAL: Final = {"model.xml", "openvino_model.xml"}
"""File names of Triton and of Optimum, which stores its tokenizers beside the model."""
_MAX_XML_BYTES: Final = 512 << 20
_CHUNK_BYTES: Final = 1 << 16
_MAX_DEPTH: Final = 64
_MAX_LAYERS: Final = 2_000_000
_OLDEST_VERSION: Final = 10
"""Version of the IR: OpenVINO 2020.1 wrote the first that this version reads."""
_MAX_SHOWN: Final = 64
_MAX_ELEMENTS: Final = 1 << 40
_BITS: Final = {"boolean": 8, "bf16": 16, "nf4": 4, "string": 8, "f8e4m3": 8, "f8e5m2": 8}


class OpenvinoFormat(StrEnum):
    """Format that OpenVINO reads."""

    IR = ".xml"
    ONNX = ".onnx"
    PADDLE = ".pdmodel"
    TFLITE = ".tflite"
    SAVEDMODEL = "saved_model.pb"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenvinoFile:
    """Path and format to pass to OpenVINO."""

    kind: OpenvinoFormat
    path: Path


def looks_like_openvino(path: Path) -> bool:
    """Whether `path` is an IR, or a directory with exactly one; no other format is recognised."""
    if path.is_dir():
        models = _entries(path, {OpenvinoFormat.IR.value})
        return len(models) == 1 and _begins_like_ir(models[0]) and not (path / "model.py").exists()
    return path.suffix.lower() == OpenvinoFormat.IR and _begins_like_ir(path)


def find_openvino_file(path: Path) -> OpenvinoFile:
    """Return the checked model at `path`.

    Raises:
        UnsupportedModelError: There is no model, there are several, or it is damaged.
    """
    if looks_like_savedmodel(path):
        read_savedmodel(path)
        return OpenvinoFile(kind=OpenvinoFormat.SAVEDMODEL, path=path)
    file = _only_file(path) if path.is_dir() else path
    if not file.is_file():
        raise refuse(file, "no such file")
    match file.suffix.lower():
        case OpenvinoFormat.IR.value:
            if not _begins_like_ir(file):
                raise refuse(file, "is not an OpenVINO IR: it does not begin with <net>")
            try:
                with FileReader(file) as source:
                    ir = read_ir(source)
            except expat.ExpatError as error:
                location = f"line {error.lineno}, column {error.offset}"
                raise corrupt(file, f"incomplete XML ({location})") from None
            except BrokenFileError as error:
                raise refuse(file, str(error)) from error
            _check_weights(file, ir.end_bytes)
        case OpenvinoFormat.ONNX.value:
            scan_onnx(find_onnx_file(file))
        case OpenvinoFormat.PADDLE.value:
            _check_paddle(file)
        case OpenvinoFormat.TFLITE.value:
            read_tflite(file)
        case _:
            raise refuse(file, f"is not a format that OpenVINO reads ({', '.join(OpenvinoFormat)})")
    return OpenvinoFile(kind=OpenvinoFormat(file.suffix.lower()), path=file)


def _entries(directory: Path, suffixes: set[str]) -> list[Path]:
    files = visible_files(directory, suffixes)
    usual = [file for file in files if file.name in _USUAL]
    return usual if len(usual) == 1 else files


def _begins_like_ir(file: Path) -> bool:
    return _IR.match(read_head(file, _HEAD_BYTES)) is not None


def _only_file(directory: Path) -> Path:
    models = _entries(directory, {kind.value for kind in OpenvinoFormat})
    if len(models) == 1:
        return models[0]
    names = ", ".join(file.name for file in models[:8])
    have = f"several models ({names})" if models else "no model"
    raise refuse(directory, f"holds {have} that OpenVINO reads; exactly one is needed")


def read_ir(source: FileReader) -> "IrFile":
    """Return an IR's declarations about its model and weights.

    Raises:
        ExpatError: It is not complete XML.
        BrokenFileError: A declaration cannot be true.
    """
    if source.size > _MAX_XML_BYTES:
        raise BrokenFileError(f"is larger than {_MAX_XML_BYTES} bytes")
    ir = IrFile()
    parser = xml_parser()
    parser.StartElementHandler = ir.start
    parser.EndElementHandler = ir.end
    parser.CharacterDataHandler = ir.characters
    for offset in range(0, source.size, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, source.size - offset)
        parser.Parse(source.read(offset, size), False)  # noqa: FBT003  # expat's
    parser.Parse(b"", True)  # noqa: FBT003  # expat's own signature: the end
    return ir


def xml_parser() -> expat.XMLParserType:
    """Return a parser that refuses entities, which could expand a few lines to gigabytes."""
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _no_entities
    return parser


def _check_weights(file: Path, end: int) -> None:
    if not end:
        return
    weights = file.with_suffix(".bin")
    if not weights.is_file():
        msg = f"its weights, {weights.name}, are not beside it; put both files into a directory"
        raise refuse(file, f"{msg} and name that")
    if weights.resolve().parent != file.resolve().parent:
        raise refuse(
            file, f"its weights, {weights.name}, are a link that leads out of the directory"
        )
    size = weights.stat().st_size
    if size < end:
        raise refuse(file, f"{weights.name} has {size} bytes, but the weights end at {end}")


def _check_paddle(file: Path) -> None:
    """Check the outer two levels of the program, because OpenVINO's own reader has no bound."""
    try:
        with FileReader(file) as source:
            blocks = [field for field in fields(source) if field.number == 1]
            for block in blocks:
                for _ in inside(source, block):
                    pass
    except (BrokenFileError, OSError) as error:
        raise refuse(file, f"cannot be read as a Paddle program: {error}") from error
    if not blocks:
        raise refuse(file, "is not a Paddle program: it has no blocks")
    weights = file.with_suffix(".pdiparams")
    if weights.exists() and weights.resolve().parent != file.resolve().parent:
        raise refuse(
            file, f"its weights, {weights.name}, are a link that leads out of the directory"
        )


def _no_entities(*_: object) -> None:
    raise BrokenFileError("declares XML entities, which are not allowed")


class IrFile:
    """Streaming reader of an IR: signature, weights by datatype, and their end offset."""

    def __init__(self) -> None:
        self.name = self.version = ""
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.weights: Counter[str] = Counter()
        self.is_quantised = False
        self.end_bytes = 0
        self._depth = self._layers = 0
        self._kind = self._layer = self._text = ""
        self._dims: list[int] = []

    def start(self, element: str, attributes: dict[str, str]) -> None:
        """Handle an element's start."""
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise BrokenFileError(f"nests deeper than {_MAX_DEPTH} elements")
        self._text = ""
        if self._depth == 1:
            self.name, self.version = attributes.get("name", ""), attributes.get("version", "")
            if _whole(self.version) < _OLDEST_VERSION:
                raise BrokenFileError(
                    "is an IR of an unsupported version; convert the model again with "
                    "OpenVINO 2022 or newer"
                )
        elif element == "layer":
            self._layers += 1
            if self._layers > _MAX_LAYERS:
                raise BrokenFileError(f"has more than {_MAX_LAYERS} layers")
            self._kind, self._layer = attributes.get("type", ""), attributes.get("name", "")
            self._dims = []
            self.is_quantised |= self._kind == "FakeQuantize"
        elif element == "data" and self._kind == "Const":
            description = f"the constant '{self._layer[:100]}'"
            offset, size = _whole(attributes.get("offset", "")), _whole(attributes.get("size", ""))
            dims = _sizes(attributes.get("shape", ""))
            if min([offset, size, *dims]) < 0:
                raise BrokenFileError(f"is damaged: {description} has an invalid position or shape")
            elements = math.prod(dims)
            kind = attributes.get("element_type", "")
            if elements > _MAX_ELEMENTS or elements * _bits(kind) > 8 * size + 7:
                raise BrokenFileError(
                    f"{description} declares {elements} elements but has {size} bytes"
                )
            self.weights[_datatype(kind)] += size
            self.end_bytes = max(self.end_bytes, offset + size)
        elif element == "data" and self._kind == "Parameter" and len(self.inputs) < _MAX_SHOWN:
            datatype = _datatype(attributes.get("element_type", ""))
            shape = tuple(_sizes(attributes.get("shape", "")))
            self.inputs.append(TensorInfo(name=self._layer, datatype=datatype, shape=shape))

    def characters(self, data: str) -> None:
        """Handle text."""
        self._text = (self._text + data)[:32]

    def end(self, element: str) -> None:
        """Handle an element's end."""
        self._depth -= 1
        if element == "dim" and len(self._dims) < _MAX_SHOWN:
            self._dims.append(_whole(self._text))
        elif element == "layer" and self._kind == "Result" and len(self.outputs) < _MAX_SHOWN:
            shape = tuple(self._dims)
            self.outputs.append(TensorInfo(name=self._layer, datatype="?", shape=shape))


def _bits(kind: str) -> int:
    if kind == "string":
        return 0  # of any length
    return _BITS.get(kind) or int(re.sub(r"\D", "", kind)[:2] or 0)


def _datatype(kind: str) -> str:
    """Return the common name of an element type; `?` if it is unknown."""
    plain = re.fullmatch(r"(f|bf|i|u)(\d{1,2})", kind)
    if plain is None:
        return {"boolean": "BOOL", "string": "BYTES"}.get(kind, "?")
    return {"f": "FP", "bf": "BF", "i": "INT", "u": "UINT"}[plain[1]] + plain[2]


def _sizes(shape: str) -> list[int]:
    """Return the dimensions of a comma-separated list; -1 if variable."""
    return [_whole(part) for part in shape.split(",") if part.strip()]


def _whole(digits: str) -> int:
    digits = digits.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else -1  # noqa: PLR2004  # 64 bits


def open_by_openvino(path: Path, options: LoadOptions) -> OpenvinoModel:
    """Open a SavedModel in OpenVINO with the names of its signature.

    Raises:
        UnsupportedModelError: OpenVINO cannot serve it; the message says why.
    """
    saved = read_savedmodel(path)
    if saved.unsafe:
        names = ", ".join(saved.unsafe[:8])
        raise refuse(path, f"OpenVINO does not support its operators {names}; TensorFlow is needed")
    names_in_signature = {tensor.name for tensor in (*saved.inputs, *saved.outputs)}

    def named(names: Sequence[str], own: str) -> str:
        return next((name for name in names if name in names_in_signature), own)

    model = open_openvino(path, options, named=named)
    for kind, declared, opened in (
        ("input", saved.inputs, model.signature.inputs),
        ("output", saved.outputs, model.signature.outputs),
    ):
        mismatched = {tensor.name for tensor in declared} ^ {tensor.name for tensor in opened}
        if mismatched:
            model.close()
            names = ", ".join(sorted(mismatched)[:8])
            raise refuse(
                path, f"OpenVINO does not keep its {kind}s {names}; install headrace[tensorflow]"
            )
    return model


class OpenvinoRuntime:
    """Loader of an IR (`.xml` and `.bin`); if named, of ONNX, SavedModels, `.tflite` and Paddle."""

    name = "openvino"
    runs_code = False
    libraries = ("openvino",)
    extra = "openvino"

    def recognises(self, path: Path) -> bool:
        """Whether `path` is an IR, by its name and first element."""
        return looks_like_openvino(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Compile the model, for the CPU."""
        file = find_openvino_file(path)
        if file.kind is OpenvinoFormat.SAVEDMODEL:
            return open_by_openvino(file.path, options)
        return open_openvino(file.path, options, named=shortest_name)
