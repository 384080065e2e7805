"""Walk through a folder of models, and the inventory as a document and as table rows."""

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final

from headrace.advise.audit.facts import FindingSeverity
from headrace.advise.inventory.asset import (
    Asset,
    AssetFormat,
    AssetProblem,
    AssetProblemKind,
    Details,
    problem,
)
from headrace.advise.inventory.inventory import PYTHON_FILE, SAVED_MODEL, SUFFIXES, examine
from headrace.core import HeadraceError, InvalidArgumentError
from headrace.registry import read_content
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.onnx.facts import TensorInfo
from headrace.runtimes.optimized.file import FILE_NAME as OPTIMIZED_FILE

_IGNORED: Final = frozenset({"__pycache__", ".git", ".hg", ".venv", "node_modules", ".DS_Store"})
_MAX_ENTRIES: Final = 500_000
_MAX_DEPTH: Final = 64
_CHUNK: Final = 1 << 20
_MAX_HASHED: Final = 64 << 30
_LARGEST_PROTOBUF: Final = (1 << 31) - 1
_HUGE: Final = 10 << 30
_NEWEST_OPSET, _OLDEST_OPSET = 40, 13
"""Range of opsets to try."""
_VERSION: Final = re.compile(r"[0-9]{1,18}")
RUNTIMES: Final[Mapping[AssetFormat, str]] = {
    AssetFormat.ONNX: "onnx",
    AssetFormat.ORT: "onnx",
    AssetFormat.PYTHON: "python",
    AssetFormat.OPENVINO: "openvino",
    AssetFormat.TORCHSCRIPT: "torchscript",
    AssetFormat.TORCH_EXPORT: "torch_export",
    AssetFormat.SAVEDMODEL: "savedmodel",
    AssetFormat.TFLITE: "tflite",
    AssetFormat.XGBOOST_JSON: "xgboost",
    AssetFormat.XGBOOST_UBJ: "xgboost",
    AssetFormat.LIGHTGBM: "lightgbm",
    AssetFormat.CATBOOST: "catboost",
    AssetFormat.GGUF: "gguf",
    AssetFormat.OPTIMIZED: "optimized",
}
"""The runtime of a format, if it is installed."""
_TREES: Final = "convert it to ONNX with onnxmltools"
CONVERSIONS: Final[Mapping[AssetFormat, str]] = {
    AssetFormat.TORCHSCRIPT: "export the module to ONNX with torch.onnx.export",
    AssetFormat.TORCH_EXPORT: "export the module to ONNX with torch.onnx.export(dynamo=True)",
    AssetFormat.TORCH_PICKLE: "load it in its original environment, then torch.onnx.export it",
    AssetFormat.SAVEDMODEL: "convert it to ONNX: python -m tf2onnx.convert --saved-model DIR",
    AssetFormat.TFLITE: "convert it to ONNX: python -m tf2onnx.convert --tflite FILE",
    AssetFormat.OPENVINO: "export the original model to ONNX",
    AssetFormat.KERAS: "model.export() it, then python -m tf2onnx.convert --saved-model DIR",
    AssetFormat.KERAS_H5: "load it in Keras, export it, then python -m tf2onnx.convert",
    AssetFormat.SKLEARN: "convert it to ONNX with skl2onnx.to_onnx, in its training environment",
    AssetFormat.PICKLE: "convert its content to ONNX, in its original environment",
    AssetFormat.XGBOOST_JSON: _TREES,
    AssetFormat.XGBOOST_UBJ: _TREES,
    AssetFormat.XGBOOST_BINARY: f"save it as JSON or UBJ with XGBoost 2, or {_TREES}",
    AssetFormat.LIGHTGBM: _TREES,
    AssetFormat.CATBOOST: 'model.save_model("model.onnx", format="onnx")',
    AssetFormat.SAFETENSORS: "it contains only weights: export the model that loads them to ONNX",
    AssetFormat.GGUF: "install `headrace[llm]`, or serve it behind an endpoint (`upstream`)",
    AssetFormat.PMML: "export the original model to ONNX",
}
"""Remedies for formats that no installed runtime serves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryContext:
    """The environment of an inventory."""

    references: Mapping[str, tuple[str, bool]] = field(default_factory=dict)
    """Registry versions by digest: `NAME:VERSION`, and whether it is signed."""

    runtimes: tuple[str, ...] = ()
    """The installed runtimes."""

    max_opset: int | None = None
    """The newest opset of the installed ONNX Runtime."""

    max_hashed_bytes: int = _MAX_HASHED


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """All assets of a folder, by path."""

    folder: str
    assets: tuple[Asset, ...]
    incomplete: str = ""
    """Reason why some assets were skipped; else empty."""


def take_inventory(folder: Path, known: InventoryContext) -> Inventory:
    """Collect every model asset under `folder`.

    Raises:
        InvalidArgumentError: The folder does not exist.
    """
    if not folder.is_dir():
        raise InvalidArgumentError(f"{folder}: is not a directory")
    walk = _Walk(folder, known)
    assets = list(walk.assets(folder))
    parts = {
        os.path.normpath(Path(asset.path).parent / part)
        for asset in assets
        for part in asset.details.parts
    }
    # Weights of an ONNX file belong to it, even if they look like another asset.
    whole = [
        asset for asset in assets if asset.format is AssetFormat.ONNX or asset.path not in parts
    ]
    whole.sort(key=lambda asset: asset.path)
    return Inventory(
        folder=str(folder), assets=tuple(_with_duplicates(whole)), incomplete=walk.incomplete
    )


def _with_duplicates(assets: list[Asset]) -> Iterator[Asset]:
    first: dict[str, str] = {}
    for asset in assets:
        same = first.setdefault(asset.digest, asset.path) if asset.digest else asset.path
        if same == asset.path or not asset.size_bytes:
            yield asset
        else:
            twin = problem(AssetProblemKind.DUPLICATE, f"has the content of {same}")
            yield replace(asset, problems=(*asset.problems, twin))


class _Walk:
    """One walk through a folder."""

    def __init__(self, root: Path, known: InventoryContext) -> None:
        self._root = root
        self._real = root.resolve()
        self._context = known
        self._entries_left = _MAX_ENTRIES
        self.incomplete = ""

    def assets(self, folder: Path, depth: int = 0) -> Iterator[Asset]:
        """Yield the assets of a folder and its subfolders."""
        if depth > _MAX_DEPTH:
            self.incomplete = f"folders nested deeper than {_MAX_DEPTH} were skipped"
            return
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda entry: entry.name)
        except OSError as error:
            self.incomplete = f"{folder} cannot be read: {error.strerror or error}"
            return
        names = {entry.name for entry in entries}
        if not names.isdisjoint({SAVED_MODEL, PYTHON_FILE, OPTIMIZED_FILE}):
            yield from self._entire_folder(folder)
            return
        for entry in entries:
            self._entries_left -= 1
            if self._entries_left < 0:
                self.incomplete = f"only the first {_MAX_ENTRIES} entries were inspected"
                return
            if entry.name in _IGNORED:
                continue
            path = Path(entry.path)
            if entry.is_symlink():
                yield from self._link(path)
            elif entry.is_dir(follow_symlinks=False):
                yield from self.assets(path, depth + 1)
            elif entry.is_file(follow_symlinks=False):
                yield from self._file(path)

    def _link(self, path: Path) -> Iterator[Asset]:
        """Yield a broken link or one out of the folder; targets represent the other links."""
        try:
            target = path.resolve(strict=True)
        except (OSError, RuntimeError):
            message = "is a broken or circular link"
        else:
            if target.is_relative_to(self._real):
                return
            message = "is a link that leaves the folder"
        link_problem = problem(AssetProblemKind.LINK_OUTSIDE, message)
        yield self._asset(
            path, AssetFormat.UNKNOWN, Details(problems=(link_problem,)), size=0, digest=""
        )

    def _file(self, path: Path) -> Iterator[Asset]:
        kind, details = examine(path, max_opset=self._context.max_opset)
        if kind is AssetFormat.UNKNOWN and not (
            details.problems and path.suffix.lower() in SUFFIXES
        ):
            return
        size = path.stat(follow_symlinks=False).st_size
        digest = self._hashed(path, size)
        yield self._asset(path, kind, details, size=size, digest=digest)

    def _entire_folder(self, folder: Path) -> Iterator[Asset]:
        """Yield a SavedModel, Python or optimized model: its folder, with all its files."""
        kind, details = examine(folder, max_opset=self._context.max_opset)
        try:
            content = read_content(folder)
            size, digest = content.size_bytes, str(content.digest)
        except HeadraceError as error:
            link_problem = problem(
                AssetProblemKind.LINK_OUTSIDE, str(error).removeprefix(f"{folder}/")
            )
            details = replace(details, problems=(*details.problems, link_problem))
            size, digest = 0, ""
        except OSError:
            size, digest = 0, ""
        yield self._asset(folder, kind, details, size=size, digest=digest)

    def _hashed(self, path: Path, size: int) -> str:
        """Return the digest as in the registry; empty for a file that is too large to read."""
        if size > self._context.max_hashed_bytes:
            return ""
        sha256 = hashlib.sha256()
        try:
            with FileReader(path) as source:
                for offset in range(0, source.size, _CHUNK):
                    sha256.update(source.read(offset, min(_CHUNK, source.size - offset)))
        except (OSError, BrokenFileError):
            return ""
        return f"sha256:{sha256.hexdigest()}"

    def _asset(
        self, path: Path, kind: AssetFormat, details: Details, *, size: int, digest: str
    ) -> Asset:
        runtime = RUNTIMES.get(kind, "")
        served = runtime if runtime in self._context.runtimes else ""
        reference, signed = self._context.references.get(digest, ("", False))
        model, version = self._by_layout(path)
        return Asset(
            path=path.relative_to(self._root).as_posix(),
            format=kind,
            size_bytes=size,
            digest=digest,
            details=details,
            runtime=served,
            convert="" if served else CONVERSIONS.get(kind, ""),
            problems=(
                *details.problems,
                *_known_problems(kind, size, digest, signed=signed),
            ),
            model=model,
            version=version,
            reference=reference,
            signed=signed,
        )

    def _by_layout(self, path: Path) -> tuple[str, str]:
        """Return model and version, if the path has Triton's layout."""
        parts = path.relative_to(self._root).parts
        for i, part in enumerate(parts):
            if i and _VERSION.fullmatch(part):
                return parts[i - 1], str(int(part))
        return "", ""


def _known_problems(
    kind: AssetFormat, size: int, digest: str, *, signed: bool
) -> Iterator[AssetProblem]:
    """Yield the problems of a file that depend on its size and signature only."""
    if kind is AssetFormat.ONNX and size > _LARGEST_PROTOBUF:
        message = (
            f"has {size} bytes; ONNX files are limited to 2 GiB, store weights as external data"
        )
        yield problem(AssetProblemKind.HUGE, message)
    elif size > _HUGE:
        unread = "" if digest else ", and was not read completely"
        yield problem(AssetProblemKind.HUGE, f"has {size} bytes{unread}")
    if size and not signed:
        yield problem(AssetProblemKind.UNSIGNED, "it has no signature in this registry")


OpensModel = Callable[[bytes], None]
"""Opens a test model in ONNX Runtime; raises if its opset is not supported."""


def highest_opset(opens: OpensModel) -> int | None:
    """Return the newest opset of the runtime, determined with a model of one node.

    Args:
        opens: Raises for an unsupported model.
    """
    for opset in range(_NEWEST_OPSET, _OLDEST_OPSET - 1, -1):
        try:
            opens(identity_model(opset))
        except Exception:  # noqa: BLE001, S112  # the binding's errors share no base class but this
            continue
        return opset
    return None


def identity_model(opset: int) -> bytes:
    """Return an ONNX model whose output is its input."""

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


def open_in_onnx_runtime(model: bytes) -> None:
    """Open a test model in ONNX Runtime; raises if it is not supported."""
    import onnxruntime as ort  # noqa: PLC0415  # slow to load, and not every audit asks

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


SCHEMA = 1
Document = dict[str, object]


def inventory_document(inventory: Inventory) -> Document:
    """Return the inventory as plain JSON data."""
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
        "inputs": [asdict(tensor) for tensor in details.inputs],
        "outputs": [asdict(tensor) for tensor in details.outputs],
        "opset": details.opset,
        "producer": details.producer or None,
        "precision": details.precision or None,
        "weights_bytes": dict(details.weights),
        "quantised": details.is_quantised,
        "parts": list(details.parts),
        "notes": dict(details.notes),
        "problems": [asdict(asset_problem) for asset_problem in asset.problems],
    }


def serious(asset: Asset) -> tuple[AssetProblem, ...]:
    """Return the problems shown by default: all but those of low severity."""
    return tuple(
        asset_problem
        for asset_problem in asset.problems
        if asset_problem.severity is not FindingSeverity.LOW
    )


HEAD = ("path", "format", "size", "opset", "precision", "runtime", "inputs", "problems")


def asset_row(asset: Asset, *, size: str) -> tuple[str, ...]:
    """Return one asset as a row of a table with the columns of `HEAD`.

    Args:
        size: Formatted for display.
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
        ", ".join(shown_tensor(tensor) for tensor in details.inputs[:3]) or "-",
        ", ".join(dict.fromkeys(asset_problem.code.value for asset_problem in serious(asset)))
        or "-",
    )


def shown_tensor(tensor: TensorInfo) -> str:
    """Return a tensor in short: `pixels FP32[any,64]`."""
    if tensor.shape is None:
        return f"{tensor.name} {tensor.datatype}"
    sizes = ",".join("any" if size < 0 else str(size) for size in tensor.shape)
    return f"{tensor.name} {tensor.datatype}[{sizes}]"


def remarks(inventory: Inventory) -> Iterator[str]:
    """Yield recommendations, one per line: problems, and formats that no runtime serves."""
    for asset in inventory.assets:
        for asset_problem in serious(asset):
            yield f"{asset.path}: {asset_problem.severity}: {asset_problem.message}"
    hints: dict[tuple[str, str], list[str]] = {}
    for asset in inventory.assets:
        if asset.convert:
            hints.setdefault((asset.format.value, asset.convert), []).append(asset.path)
    for (kind, hint), paths in hints.items():
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        yield f"{paths[0]}{more}: no installed runtime serves {kind}; {hint}"
    low = sum(len(asset.problems) - len(serious(asset)) for asset in inventory.assets)
    if low:
        yield f"{low} remarks of low severity (unsigned, duplicates) are in --json"
    if inventory.incomplete:
        yield f"incomplete: {inventory.incomplete}"
