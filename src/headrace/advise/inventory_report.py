"""Inventory of models as a document and as rows, and the operator sets that they need."""

from collections.abc import Callable, Iterator
from dataclasses import asdict

from headrace.advise.facts import Severity
from headrace.advise.inventory_model import Asset, Problem, TensorInfo
from headrace.advise.inventory_walk import Inventory

OpensModel = Callable[[bytes], None]
"""Opens a model of ours in ONNX Runtime; raises if that does not know its opset."""


def highest_opset(opens: OpensModel, *, most: int = 40, least: int = 13) -> int | None:
    """The newest opset that the runtime takes, found out with a model of one node.

    Args:
        opens: Raises for a model that is too new.
    """
    for opset in range(most, least - 1, -1):
        try:
            opens(identity_model(opset))
        except Exception:  # noqa: BLE001, S112  # the binding's errors share no base class but this
            continue
        return opset
    return None


def identity_model(opset: int) -> bytes:
    """An ONNX model whose output is its input."""

    def message(number: int, content: bytes) -> bytes:
        return bytes((number << 3 | 2, len(content))) + content

    def value(name: bytes) -> bytes:
        tensor = b"\x08\x01" + message(2, message(1, b"\x08\x01"))  # FP32 of shape [1]
        return message(1, name) + message(2, message(1, tensor))

    node = message(1, b"x") + message(2, b"y") + message(4, b"Identity")
    graph = (
        message(1, node) + message(2, b"g") + message(11, value(b"x")) + message(12, value(b"y"))
    )
    return b"\x08\x08" + message(7, graph) + message(8, bytes((0x10, opset)))


def opens_here(model: bytes) -> None:
    """Open a model of ours in ONNX Runtime; raises if it does not take it."""
    import onnxruntime as ort  # noqa: PLC0415  # slow to load, and not every audit asks

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


SCHEMA = 1
Document = dict[str, object]


def inventory_document(inventory: Inventory) -> Document:
    """The inventory as plain JSON data."""
    assets = inventory.assets
    return {
        "schema": SCHEMA,
        "folder": inventory.folder,
        "summary": {
            "assets": len(assets),
            "size_bytes": sum(asset.size_bytes for asset in assets),
            "served": sum(bool(asset.runtime) for asset in assets),
            "with_problems": sum(bool(serious(asset)) for asset in assets),
        },
        "incomplete": inventory.incomplete or None,
        "assets": [_document(asset) for asset in assets],
    }


def _document(asset: Asset) -> Document:
    details = asset.details
    return {
        "path": asset.path,
        "format": asset.format.value,
        "size_bytes": asset.size_bytes,
        "digest": asset.digest or None,
        "model": asset.model or None,
        "version": asset.version or None,
        "reference": asset.reference or None,
        "signed": asset.signed,
        "runtime": asset.runtime or None,
        "convert": asset.convert or None,
        "inputs": [_tensor(one) for one in details.inputs],
        "outputs": [_tensor(one) for one in details.outputs],
        "opset": details.opset,
        "producer": details.producer or None,
        "precision": details.precision or None,
        "weights_bytes": dict(details.weights),
        "quantised": details.is_quantised,
        "parts": list(details.parts),
        "notes": dict(details.notes),
        "problems": [asdict(one) for one in asset.problems],
    }


def _tensor(one: TensorInfo) -> Document:
    shape = None if one.shape is None else list(one.shape)
    return {"name": one.name, "datatype": one.datatype, "shape": shape}


def serious(asset: Asset) -> tuple[Problem, ...]:
    """The problems that people are shown at once: all but the lowest."""
    return tuple(one for one in asset.problems if one.severity is not Severity.LOW)


HEAD = ("path", "format", "size", "opset", "precision", "runtime", "inputs", "problems")


def asset_row(asset: Asset, *, size: str) -> tuple[str, ...]:
    """One asset in a table with the columns of `HEAD`.

    Args:
        size: As people write it.
    """
    details = asset.details
    precision = details.precision or "-"
    return (
        asset.path,
        asset.format.value,
        size,
        "-" if details.opset is None else str(details.opset),
        f"{precision} (quantised)" if details.is_quantised else precision,
        asset.runtime or "none",
        ", ".join(shown_tensor(one) for one in details.inputs[:3]) or "-",
        ", ".join(dict.fromkeys(one.code.value for one in serious(asset))) or "-",
    )


def shown_tensor(one: TensorInfo) -> str:
    """An input in a few letters: `pixels FP32[any,64]`."""
    if one.shape is None:
        return f"{one.name} {one.datatype}"
    sizes = ",".join("any" if size < 0 else str(size) for size in one.shape)
    return f"{one.name} {one.datatype}[{sizes}]"


def remarks(inventory: Inventory) -> Iterator[str]:
    """What to do, a line each: problems with their reason, formats that no runtime serves."""
    for asset in inventory.assets:
        for one in serious(asset):
            yield f"{asset.path}: {one.severity}: {one.message}"
    hints: dict[tuple[str, str], list[str]] = {}
    for asset in inventory.assets:
        if asset.convert:
            hints.setdefault((asset.format.value, asset.convert), []).append(asset.path)
    for (kind, hint), paths in hints.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{paths[0]}{more}: no runtime here serves {kind}; {hint}"
    low = sum(len(asset.problems) - len(serious(asset)) for asset in inventory.assets)
    if low:
        yield f"{low} remarks of low severity (unsigned, duplicates) are in --json"
    if inventory.incomplete:
        yield f"incomplete: {inventory.incomplete}"
