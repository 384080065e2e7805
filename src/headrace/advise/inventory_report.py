"""An inventory for programs, and as rows for people."""

from collections.abc import Iterator
from dataclasses import asdict

from headrace.advise.inventory_model import Asset, Problem, TensorInfo
from headrace.advise.inventory_walk import Inventory
from headrace.advise.severity import Severity

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
