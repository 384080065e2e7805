"""What does an ONNX file say of itself? Read from its protobuf, weights unread."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.advise.inventory_model import Details, Problem, TensorInfo, Trouble, bits_of, problem
from headrace.runtimes.file_bytes import Field, Source, fields, inside, numbers, signed, text

_KNOWN_DOMAINS: Final = frozenset(
    {
        *("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten"),
    }
)
_TYPES: Final = {
    1: "FP32",
    2: "UINT8",
    3: "INT8",
    4: "UINT16",
    5: "INT16",
    6: "INT32",
    7: "INT64",
    8: "BYTES",
    9: "BOOL",
    10: "FP16",
    11: "FP64",
    12: "UINT32",
    13: "UINT64",
    14: "COMPLEX64",
    15: "COMPLEX128",
    16: "BF16",
    17: "FP8E4M3FN",
    18: "FP8E4M3FNUZ",
    19: "FP8E5M2",
    20: "FP8E5M2FNUZ",
    21: "UINT4",
    22: "INT4",
    23: "FP4E2M1",
    24: "FP8E8M0",
    25: "UINT2",
    26: "INT2",
}
_QUANTISED: Final = ("QLinear", "DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits")
_MOST_SHOWN: Final = 64
_MOST_NODES: Final = 300_000
_EXTERNAL: Final = 1


def looks_like_onnx(source: Source) -> bool:
    """Whether the file is a `ModelProto`: a version, a graph, and no field that it has not."""
    head = source.head(2)
    if len(head) < 2 or head[0] != 0x08 or not 0 < head[1] <= 30:  # noqa: PLR2004  # ir_version
        return False
    seen = {one.number for one in fields(source)}
    return 7 in seen and seen <= {1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26}  # noqa: PLR2004  # graph


@dataclass(slots=True)
class _Found:
    weights: Counter[str] = field(default_factory=Counter)
    external: dict[str, int] = field(default_factory=dict)
    initial: set[str] = field(default_factory=set)
    inputs: list[TensorInfo] = field(default_factory=list)
    outputs: list[TensorInfo] = field(default_factory=list)
    quantised: bool = False
    nodes: int = 0


def onnx_details(source: Source, *, max_opset: int | None) -> Details:
    """Signature, opset, producer and weights of an ONNX file.

    Args:
        max_opset: The newest opset that the runtime here knows; None if that is not known.

    Raises:
        BrokenFileError: It is damaged.
    """
    found = _Found()
    opsets: dict[str, int] = {}
    producer = ["", ""]
    ir_version = 0
    for one in fields(source):
        match one.number:
            case 1:
                ir_version = one.value
            case 2 | 3:
                producer[one.number - 2] = text(source, one)
            case 7:
                _read_graph(source, one, found)
            case 8:
                domain, version = _read_opset(source, one)
                opsets[domain] = version
    opset = opsets.get("", opsets.get("ai.onnx"))
    return Details(
        inputs=tuple(one for one in found.inputs if one.name not in found.initial),
        outputs=tuple(found.outputs),
        opset=opset,
        producer=" ".join(word for word in producer if word),
        weights=dict(found.weights),
        quantised=True if found.quantised else None if found.weights else False,
        notes={"ir_version": str(ir_version), "nodes": str(found.nodes)},
        parts=tuple(sorted(found.external)),
        problems=(
            *_opset_problems(opset, opsets, max_opset),
            *_external_problems(source.path, found.external),
        ),
    )


def _read_opset(source: Source, one: Field) -> tuple[str, int]:
    domain, version = "", 0
    for part in inside(source, one):
        if part.number == 1:
            domain = text(source, part)
        elif part.number == 2:  # noqa: PLR2004  # OperatorSetIdProto.version
            version = signed(part.value)
    return domain, version


def _opset_problems(
    opset: int | None, opsets: dict[str, int], max_opset: int | None
) -> list[Problem]:
    found = []
    if opset is not None and max_opset is not None and opset > max_opset:
        message = f"opset {opset}; the ONNX Runtime here knows opsets up to {max_opset}"
        found.append(problem(Trouble.OPSET_TOO_NEW, message))
    custom = sorted(domain for domain in opsets if domain not in _KNOWN_DOMAINS)
    if custom:
        message = f"needs operators of {', '.join(custom[:8])}"
        found.append(problem(Trouble.CUSTOM_OPERATORS, message))
    return found


def _external_problems(path: Path, external: dict[str, int]) -> list[Problem]:
    found = []
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
            found.append(problem(Trouble.EXTERNAL_OUTSIDE, message))
        elif size is None:
            message = f"its weights are in {location[:200]!r}, which is not there"
            found.append(problem(Trouble.MISSING_PART, message))
        elif size < end:
            message = f"{location[:200]!r} has {size} bytes; its weights end at {end}"
            found.append(problem(Trouble.MISSING_PART, message))
    return found


def _read_graph(source: Source, graph: Field, found: _Found) -> None:
    for one in inside(source, graph):
        match one.number:
            case 1:
                found.nodes += 1
                if found.nodes <= _MOST_NODES and not found.quantised:
                    found.quantised = _is_quantised_node(source, one)
            case 5:
                _read_tensor(source, one, found)
            case 11 if len(found.inputs) < _MOST_SHOWN + len(found.initial):
                found.inputs.append(_value_info(source, one))
            case 12 if len(found.outputs) < _MOST_SHOWN:
                found.outputs.append(_value_info(source, one))


def _is_quantised_node(source: Source, node: Field) -> bool:
    kind = next((text(source, one) for one in inside(source, node) if one.number == 4), "")  # noqa: PLR2004  # op_type
    return kind.startswith(_QUANTISED)


def _read_tensor(source: Source, tensor: Field, found: _Found) -> None:
    count, datatype, is_external = 1, "", False
    entries: dict[str, str] = {}
    for one in inside(source, tensor):
        match one.number:
            case 1:
                for size in numbers(source, one):
                    count = min(count * max(size, 0), 1 << 62)
            case 2:
                datatype = _TYPES.get(one.value, f"type {one.value}")
            case 8:
                found.initial.add(text(source, one))
            case 13:
                key, value = _entry(source, one)
                entries[key] = value
            case 14:
                is_external = one.value == _EXTERNAL
    size_bytes = -(-count * bits_of(datatype) // 8)
    found.weights[datatype] += size_bytes
    if is_external:
        length = _whole(entries.get("length")) or size_bytes
        end = _whole(entries.get("offset")) + length
        location = entries.get("location", "")
        found.external[location] = max(found.external.get(location, 0), end)


def _whole(digits: str | None) -> int:
    is_number = digits is not None and digits.isascii() and digits.isdigit() and len(digits) < 20  # noqa: PLR2004  # 64 bits
    return int(digits) if is_number and digits is not None else 0


def _entry(source: Source, one: Field) -> tuple[str, str]:
    parts = {part.number: text(source, part, 4096) for part in inside(source, one)}
    return parts.get(1, ""), parts.get(2, "")


def _value_info(source: Source, one: Field) -> TensorInfo:
    name, datatype, shape = "", "?", None
    for part in inside(source, one):
        if part.number == 1:
            name = text(source, part)
        elif part.number == 2:  # noqa: PLR2004  # ValueInfoProto.type
            datatype, shape = _value_type(source, part)
    return TensorInfo(name=name, datatype=datatype, shape=shape)


def _value_type(source: Source, one: Field) -> tuple[str, tuple[int, ...] | None]:
    kinds = {4: "sequence", 5: "map", 8: "sparse", 9: "optional"}
    for part in inside(source, one):
        if part.number != 1:
            return kinds.get(part.number, "?"), None
        datatype, shape = "?", None
        for item in inside(source, part):
            if item.number == 1:
                datatype = _TYPES.get(item.value, f"type {item.value}")
            elif item.number == 2:  # noqa: PLR2004  # TypeProto.Tensor.shape
                dims = [d for d in inside(source, item) if d.number == 1][:_MOST_SHOWN]
                shape = tuple(_dimension(source, dim) for dim in dims)
        return datatype, shape
    return "?", None


def _dimension(source: Source, one: Field) -> int:
    values = [signed(part.value) for part in inside(source, one) if part.number == 1]
    return values[0] if values and values[0] >= 0 else -1
