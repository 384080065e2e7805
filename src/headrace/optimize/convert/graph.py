"""Wrapper that gives a converted ONNX graph the signature of its source.

Converters choose their own names, datatypes and shapes. With the source's signature, callers need
no change, and a rollout can shift traffic from one to the other.
"""

from typing import Any, Final

import onnx
from onnx import TensorProto, compose, helper

from headrace.core import VARIABLE, Datatype, ModelSignature, TensorSpec, UnsupportedModelError

_PREFIX: Final = "converted_"
_OPSET: Final = 15
"""Opset of the added nodes if the graph imports none of the default domain."""
_MAX_NAMES: Final = 8
_TYPES: Final = {
    Datatype.BOOL: TensorProto.BOOL,
    Datatype.UINT8: TensorProto.UINT8,
    Datatype.UINT16: TensorProto.UINT16,
    Datatype.UINT32: TensorProto.UINT32,
    Datatype.UINT64: TensorProto.UINT64,
    Datatype.INT8: TensorProto.INT8,
    Datatype.INT16: TensorProto.INT16,
    Datatype.INT32: TensorProto.INT32,
    Datatype.INT64: TensorProto.INT64,
    Datatype.FP16: TensorProto.FLOAT16,
    Datatype.FP32: TensorProto.FLOAT,
    Datatype.FP64: TensorProto.DOUBLE,
    Datatype.BYTES: TensorProto.STRING,
}

Graph = Any  # onnx ships no types


def like_its_source(model: Graph, signature: ModelSignature) -> Graph:
    """Return `model` with the names, datatypes, shapes and order of `signature`.

    Raises:
        UnsupportedModelError: It has another number of inputs or outputs.
    """
    # Replace a converter's list of dictionaries by tensors.
    graph = model.graph
    for node in [node for node in graph.node if node.op_type == "ZipMap"]:
        graph.node.remove(node)
        for i, output in enumerate(graph.output):
            if output.name == node.output[0]:
                tensor = helper.make_tensor_value_info(node.input[0], TensorProto.FLOAT, None)
                graph.output.remove(output)
                graph.output.insert(i, tensor)
    # Import each domain once, and the default domain in any case.
    versions: dict[str, int] = {"": plain_opset(model)}
    for opset in model.opset_import:
        versions[opset.domain] = max(opset.version, versions.get(opset.domain, 0))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*item) for item in versions.items())
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(model.opset_import))
    inner = compose.add_prefix(model, _PREFIX, inplace=False)
    graph = inner.graph
    _check_count("inputs", len(graph.input), len(signature.inputs))
    _check_count("outputs", len(graph.output), len(signature.outputs))
    first, last = [], []
    for value, spec in zip(graph.input, signature.inputs, strict=True):
        kind = value.type.tensor_type.elem_type
        first.append(helper.make_node("Cast", [spec.name], [value.name], to=kind))
    constants: list[Graph] = []
    for value, spec in zip(graph.output, signature.outputs, strict=True):
        last += _as_declared(value.name, spec, constants)
    nodes = [*first, *graph.node, *last]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    graph.input.extend(map(_value, signature.inputs))
    graph.output.extend(map(_value, signature.outputs))
    graph.name = "model"
    onnx.checker.check_model(inner)
    return inner


def check_operators(model: Graph) -> None:
    """Refuse a graph that still holds operators of the source's framework.

    Raises:
        UnsupportedModelError: The message names the operators.
    """
    plain = {node.op_type for node in model.graph.node if not node.domain}
    unknown = sorted(name for name in plain if not onnx.defs.has(name))
    if unknown:
        names = ", ".join(unknown[:_MAX_NAMES])
        raise UnsupportedModelError(f"ONNX has no equivalent of its operators {names}")


def plain_opset(model: Graph) -> int:
    """Return the opset version of the default domain."""
    return max(
        (opset.version for opset in model.opset_import if opset.domain == ""), default=_OPSET
    )


def _as_declared(name: str, spec: TensorSpec, constants: list[Graph]) -> list[Graph]:
    """Return nodes that reshape and cast an output as declared."""
    nodes = []
    if VARIABLE not in spec.shape[1:]:  # else no single shape is valid, and the converter's is used
        sizes = [-1 if i == 0 else size for i, size in enumerate(spec.shape)]
        constants.append(
            helper.make_tensor(f"{name}_shape", TensorProto.INT64, [len(sizes)], sizes)
        )
        nodes.append(helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_shaped"]))
        name = f"{name}_shaped"
    if spec.datatype is Datatype.BYTES:
        return [*nodes, helper.make_node("Identity", [name], [spec.name])]
    return [*nodes, helper.make_node("Cast", [name], [spec.name], to=_TYPES[spec.datatype])]


def _value(spec: TensorSpec) -> Graph:
    sizes = [
        ("N" if i == 0 else f"{spec.name}_{i}") if size == VARIABLE else size
        for i, size in enumerate(spec.shape)
    ]
    return helper.make_tensor_value_info(spec.name, _TYPES[spec.datatype], sizes)


def _check_count(description: str, actual: int, expected: int) -> None:
    if actual != expected:
        msg = f"the converted model has {actual} {description}, and the source {expected}"
        raise UnsupportedModelError(msg)
