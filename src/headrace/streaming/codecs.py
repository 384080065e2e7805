"""Factory of a stream's codec from its settings and its model."""

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import Final

from headrace.core import (
    Datatype,
    InvalidArgumentError,
    ModelSignature,
    TensorSpec,
    UnsupportedError,
)
from headrace.core.spec.stream_parts import FormatKind, Function, StreamFormatSpec
from headrace.protocol.inputs import InputTensor, ModelInputs
from headrace.scoring.scorer import Scorer
from headrace.streaming.codec import (
    AnswerFields,
    Codec,
    FieldCodec,
    InputSource,
    OpenInferenceCodec,
)
from headrace.streaming.formats import FieldLayout, FieldSpec, ValueReader
from headrace.streaming.settings import WorkerSettings

_MODULES: Final = {
    FormatKind.JSON: "json_objects",
    FormatKind.RAW: "raw",
    FormatKind.AVRO: "avro",
    FormatKind.PROTOBUF: "protobuf",
    FormatKind.OPENAI: "raw",
}
_MATRIX_RANK: Final = 2
_FLOATS: Final = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})
_WHOLE: Final = frozenset({Datatype.INT32, Datatype.INT64, Datatype.UINT32, Datatype.UINT64})


def make_codec(settings: WorkerSettings, scorer: Scorer) -> Codec:
    """Return a codec for one thread.

    Raises:
        InvalidArgumentError: The format does not fit the model; the message contains the reason.
        UnsupportedError: A package that the format needs is not installed.
    """
    reads, writes = settings.format, settings.sink_format or settings.format
    signature = scorer.signature
    if FormatKind.OPEN_INFERENCE in {reads.kind, writes.kind}:
        return _open_inference(settings, scorer)
    sources, inputs = _sources(
        reads, signature, ModelInputs(scorer.name, signature, nulls=settings.nulls)
    )
    outputs = wanted_outputs(settings, signature)
    answered = tuple(settings.output.fields)
    key = settings.output.key
    passed = tuple(dict.fromkeys((*answered, *((key,) if key else ()))))
    _check_names(inputs, passed, outputs, answered)
    added = check_added(settings, inputs)
    input_names = {*(spec.name for spec in inputs), *added}
    reading = FieldLayout(
        inputs=tuple(spec for spec in inputs if spec.name not in added),
        outputs=(),
        passed=tuple(name for name in passed if name not in input_names),
    )
    writing = FieldLayout(
        inputs=(),
        outputs=tuple(_field(spec.name, spec, batched=signature.batched) for spec in outputs),
        answered=answered,
    )
    reader = make_reader(reads, reading)
    written = AnswerFields(
        format=_module(writes.kind).make_writer(writes, writing),
        answered=answered,
        outputs=tuple(spec.name for spec in outputs),
        key=key,
    )
    return FieldCodec(reader, sources, written, batched=signature.batched)


def make_reader(settings: StreamFormatSpec, layout: FieldLayout) -> ValueReader:
    """Return the reader of a format.

    Raises:
        UnsupportedError: A package that it needs is not installed.
    """
    reader: ValueReader = _module(settings.kind).make_reader(settings, layout)
    return reader


def _module(kind: FormatKind) -> ModuleType:
    try:
        return import_module(f"headrace.streaming.formats.{_MODULES[kind]}")
    except ModuleNotFoundError as error:
        msg = f"format '{kind}' needs the package '{error.name}', which is not installed"
        raise UnsupportedError(msg) from error


def check_added(settings: WorkerSettings, inputs: Sequence[FieldSpec]) -> frozenset[str]:
    """Check that inputs can take the windows mapped to them, and return the names of the windows.

    Raises:
        InvalidArgumentError: An input has a datatype that cannot hold its window.
    """
    windows = {} if settings.windows is None else {w.name: w for w in settings.windows.windows}
    for spec in inputs:
        window = windows.get(spec.name)
        if window is None:
            continue
        whole = window.function is Function.COUNT and spec.datatype in _WHOLE
        if not (whole or spec.datatype in _FLOATS) or spec.shape not in ((), (1,), (-1,)):
            msg = (
                f"window '{window.name}' is a {window.function}, but an input of datatype "
                f"{spec.datatype} and shape {list(spec.shape)} cannot hold it"
            )
            raise InvalidArgumentError(msg)
    return frozenset(windows)


def wanted_outputs(settings: WorkerSettings, signature: ModelSignature) -> list[TensorSpec]:
    """Return the outputs that answers contain.

    Raises:
        InvalidArgumentError: The model has no such output.
    """
    names = settings.output.outputs
    if not names:
        return list(signature.outputs)
    specs = []
    for name in names:
        spec = signature.output(name)
        if spec is None:
            there = ", ".join(spec.name for spec in signature.outputs)
            msg = f"output.outputs names '{name}', but the model has: {there}"
            raise InvalidArgumentError(msg)
        specs.append(spec)
    return specs


def _open_inference(settings: WorkerSettings, scorer: Scorer) -> Codec:
    other = settings.sink_format
    is_whole = settings.format.kind is FormatKind.OPEN_INFERENCE and (
        other is None or other.kind is FormatKind.OPEN_INFERENCE
    )
    if not is_whole or settings.output.fields or settings.output.key or settings.output.outputs:
        msg = (
            "the format open_inference applies to input and output, and each request names its "
            "outputs: remove sink_format, output.key, output.fields and output.outputs"
        )
        raise InvalidArgumentError(msg)
    return OpenInferenceCodec(scorer.name, scorer.version, scorer.signature, nulls=settings.nulls)


def _sources(
    settings: StreamFormatSpec, signature: ModelSignature, inputs: ModelInputs
) -> tuple[list[InputSource], tuple[FieldSpec, ...]]:
    for name in (*settings.fields, *settings.columns):
        if name not in inputs.tensors:
            there = ", ".join(inputs.tensors)
            msg = f"the format names input '{name}', but the model has: {there}"
            raise InvalidArgumentError(msg)
    sources, fields = [], []
    for name, tensor in inputs.tensors.items():
        if name in settings.columns:
            names = _columns(settings, signature, tensor)
            sources.append(InputSource(tensor=tensor, fields=names, is_matrix=True))
            fields += [FieldSpec(name=column, datatype=tensor.spec.datatype) for column in names]
        else:
            field = settings.fields.get(name, name)
            sources.append(InputSource(tensor=tensor, fields=(field,)))
            fields.append(_field(field, tensor.spec, batched=signature.batched))
    return sources, tuple(fields)


def _columns(
    settings: StreamFormatSpec, signature: ModelSignature, tensor: InputTensor
) -> tuple[str, ...]:
    names = tuple(settings.columns[tensor.name]) or tuple(signature.columns.get(tensor.name, ()))
    shape = tensor.spec.shape
    if not signature.batched or len(shape) != _MATRIX_RANK:
        msg = f"input '{tensor.name}' is not a matrix of rows, so it has no columns: {list(shape)}"
        raise InvalidArgumentError(msg)
    if not names:
        msg = f"the model does not name the columns of input '{tensor.name}': list them"
        raise InvalidArgumentError(msg)
    if shape[1] not in (-1, len(names)):
        msg = f"input '{tensor.name}' has {shape[1]} columns, but {len(names)} are named"
        raise InvalidArgumentError(msg)
    return names


def _field(name: str, spec: TensorSpec, *, batched: bool) -> FieldSpec:
    shape = spec.shape[1:] if batched else spec.shape
    return FieldSpec(name=name, datatype=spec.datatype, shape=shape)


def _check_names(
    inputs: Sequence[FieldSpec],
    passed: Sequence[str],
    outputs: Sequence[TensorSpec],
    answered: Sequence[str],
) -> None:
    names = [spec.name for spec in inputs]
    twice = next((name for index, name in enumerate(names) if name in names[:index]), None)
    if twice is not None:
        msg = f"field '{twice}' is used for two inputs or columns"
        raise InvalidArgumentError(msg)
    both = next((spec.name for spec in outputs if spec.name in answered), None)
    if both is not None:
        msg = f"answers would contain '{both}' twice: as an output and as an input field"
        raise InvalidArgumentError(msg)
    if "" in (*names, *passed):
        msg = "a field has no name"
        raise InvalidArgumentError(msg)
