"""Inventory of the models in a folder: format, requirements and inputs of each file."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from headrace.advise.inventory.archive import MAGIC as ZIP
from headrace.advise.inventory.archive import (
    archive_details,
    archive_format,
    decompress_head,
    looks_like_pickle,
    pickle_details,
    pickle_format,
    read_opcodes,
)
from headrace.advise.inventory.asset import (
    AssetFormat,
    AssetProblem,
    AssetProblemKind,
    Details,
    problem,
)
from headrace.advise.inventory.graphs import (
    looks_like_onnx,
    looks_like_saved_model,
    onnx_details,
    openvino_details,
    saved_model_details,
    tflite_details,
    xml_root,
)
from headrace.advise.inventory.weights import (
    gguf_details,
    lightgbm_details,
    looks_like_safetensors,
    safetensors_details,
    tree_format,
    xgboost_json_details,
    xgboost_ubj_details,
)
from headrace.core import UnsupportedModelError
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.optimized.file import FILE_NAME, decode_manifest, path_in
from headrace.runtimes.optimized.processor import plain

_MAX_FILES: Final = 1000
_MAX_DEPTH: Final = 16

Examine = Callable[[Path], tuple[AssetFormat, Details]]


def optimized_details(folder: Path, examine: Examine) -> Details:
    """Return inputs and outputs of the first member, weights and problems of all files.

    Unused files count too: another program may load them.
    """
    members: dict[Path, Details] = {}
    problems: list[AssetProblem] = []
    for file in _files(folder, 0):
        kind, details = examine(file)
        if kind is not AssetFormat.UNKNOWN or details.problems:
            members[file] = details
            name = file.relative_to(folder).as_posix()
            problems += [
                replace(detail, message=f"'{name}' {detail.message}") for detail in details.problems
            ]
    try:
        manifest = decode_manifest(folder / FILE_NAME)
        first = members.get(path_in(folder, manifest.members[0].path), Details())
        for member in manifest.members:
            path_in(folder, member.path)
    except (UnsupportedModelError, IndexError) as error:
        message = f"cannot be served: {str(error)[:300] or 'it has no member'}"
        problems.append(problem(AssetProblemKind.BROKEN, message))
        return Details(producer="headrace", problems=tuple(problems))
    weights: Counter[str] = Counter()
    for details in members.values():
        weights.update(details.weights)
    return Details(
        inputs=first.inputs,
        outputs=first.outputs,
        opset=first.opset,
        producer="headrace",
        weights=dict(weights),
        quantised=any(details.is_quantised for details in members.values()),
        notes={
            "engines": ", ".join(
                dict.fromkeys(plain(member.runtime) for member in manifest.members)
            ),
            "verified on": plain(manifest.processor.name),
            "on another processor": manifest.on_other_processor.value,
        },
        problems=tuple(problems),
    )


def _files(folder: Path, depth: int) -> Iterator[Path]:
    """Yield regular files up to a limit; links are not followed."""
    if depth > _MAX_DEPTH:
        return
    with os.scandir(folder) as entries:
        children = sorted(entries, key=lambda entry: entry.name)[:_MAX_FILES]
    for entry in children:
        if entry.is_dir(follow_symlinks=False):
            yield from _files(Path(entry.path), depth + 1)
        elif entry.is_file(follow_symlinks=False) and entry.name != FILE_NAME:
            yield Path(entry.path)


SAVED_MODEL: Final = "saved_model.pb"
PYTHON_FILE: Final = "model.py"
SUFFIXES: Final = {
    ".onnx": AssetFormat.ONNX,
    ".ort": AssetFormat.ORT,
    ".tflite": AssetFormat.TFLITE,
    ".pt": AssetFormat.TORCHSCRIPT,
    ".pth": AssetFormat.TORCH_PICKLE,
    ".ts": AssetFormat.TORCHSCRIPT,
    ".pt2": AssetFormat.TORCH_EXPORT,
    ".keras": AssetFormat.KERAS,
    ".h5": AssetFormat.KERAS_H5,
    ".hdf5": AssetFormat.KERAS_H5,
    ".pkl": AssetFormat.PICKLE,
    ".pickle": AssetFormat.PICKLE,
    ".joblib": AssetFormat.SKLEARN,
    ".ubj": AssetFormat.XGBOOST_UBJ,
    ".cbm": AssetFormat.CATBOOST,
    ".safetensors": AssetFormat.SAFETENSORS,
    ".gguf": AssetFormat.GGUF,
    ".pmml": AssetFormat.PMML,
}
"""The expected format by suffix; the content must match."""
CODE_FORMATS: Final = frozenset(
    {
        AssetFormat.PYTHON,
        AssetFormat.PICKLE,
        AssetFormat.SKLEARN,
        AssetFormat.TORCH_PICKLE,
        AssetFormat.TORCHSCRIPT,  # its operators read and write files
        AssetFormat.TORCH_EXPORT,  # loading one loads pickles
    }
)
_LFS: Final = b"version https://git-lfs"
_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_HEAD: Final = 4096
_MAX_TEXT: Final = 1 << 20
_MOST_HDF5: Final = 4 << 20
_LAMBDA: Final = re.compile(rb'"class_name"\s*:\s*"Lambda"')
_PYTHON_CLASS: Final = re.compile(rb"^class\s+\w+\([^)\n]*\bPythonModel\b", re.MULTILINE)
_OLD_PICKLES: Final = frozenset({".pkl", ".pickle", ".joblib", ".gz", ".bz2", ".xz", ".lzma", ".z"})


def recognise(path: Path) -> tuple[AssetFormat, bool]:
    """Return the format of `path`, and whether it runs code; UNKNOWN if unreadable."""
    kind, details = examine(path)
    codes = {report_problem.code for report_problem in details.problems}
    has_code = kind in CODE_FORMATS or bool(
        codes & {AssetProblemKind.RUNS_CODE, AssetProblemKind.DANGEROUS_CODE}
    )
    return kind, has_code


def examine(path: Path, *, max_opset: int | None = None) -> tuple[AssetFormat, Details]:
    """Return format and details of `path`; the content never causes an exception.

    Args:
        max_opset: The newest opset of the installed ONNX Runtime.
    """
    try:
        if path.is_dir():
            if (path / FILE_NAME).is_file():
                content = optimized_details(path, partial(examine, max_opset=max_opset))
                return AssetFormat.OPTIMIZED, content
            for name in (SAVED_MODEL, PYTHON_FILE):
                if (path / name).is_file():
                    return examine(path / name, max_opset=max_opset)
            for file in sorted(entry for entry in path.iterdir() if entry.is_file())[:_MAX_FILES]:
                kind, details = examine(file, max_opset=max_opset)
                if kind is not AssetFormat.UNKNOWN:
                    return kind, details
            return AssetFormat.UNKNOWN, Details()
        with FileReader(path) as source:
            return _examine_file(source, max_opset)
    except BrokenFileError as error:
        message = str(error)
    except OSError as error:
        message = f"cannot be read: {error.strerror or error}"
    except (ArithmeticError, LookupError, MemoryError, RecursionError, ValueError) as error:
        # Untrusted files: an error that a reader does not expect must not hide the others.
        message = f"cannot be read: {type(error).__name__}"
    return AssetFormat.UNKNOWN, Details(problems=(problem(AssetProblemKind.BROKEN, message),))


def _examine_file(source: FileReader, max_opset: int | None) -> tuple[AssetFormat, Details]:
    named = SUFFIXES.get(source.path.suffix.lower(), AssetFormat.UNKNOWN)
    head = source.head(_HEAD)
    if not head:
        return named, Details(problems=(problem(AssetProblemKind.EMPTY, "is empty"),))
    if head.startswith(_LFS):
        message = "is a Git LFS pointer; `git lfs pull` fetches the model"
        return named, Details(problems=(problem(AssetProblemKind.LFS_POINTER, message),))
    kind, message = named, ""
    try:
        kind = _kind(source, head, named)
        if kind is not AssetFormat.UNKNOWN:
            return kind, _details(source, kind, max_opset)
        if named is not AssetFormat.UNKNOWN:
            message = f"has the suffix {source.path.suffix}, but its content is something else"
    except BrokenFileError as error:
        message = str(error)
    return kind, Details(problems=(problem(AssetProblemKind.BROKEN, message),) if message else ())


def _kind(  # noqa: C901, PLR0911  # a format each, in the order of their marks
    source: FileReader, head: bytes, named: AssetFormat
) -> AssetFormat:
    """Detect the format by content.

    Raises:
        BrokenFileError: It begins like a model but is damaged.
    """
    format_by_mark = _MAGIC_AT_4.get(head[4:8]) or tree_format(head)
    if format_by_mark is not None:
        return format_by_mark
    if head.startswith(b"GGUF"):
        return AssetFormat.GGUF
    if head.startswith(ZIP):
        return archive_format(source)
    if looks_like_safetensors(source):
        return AssetFormat.SAFETENSORS
    if root := xml_root(source):
        return _XML_ROOTS.get(root, AssetFormat.UNKNOWN)
    if head.startswith(_HDF5):
        data = source.head(_MOST_HDF5)
        return (
            AssetFormat.KERAS_H5
            if b"model_config" in data or b"keras" in data
            else AssetFormat.UNKNOWN
        )
    # The other formats have no magic number: Python, old pickles, protobuf.
    suffix = source.path.suffix.lower()
    if suffix == ".py":
        is_model = source.path.name == PYTHON_FILE or _PYTHON_CLASS.search(source.head(_MAX_TEXT))
        return AssetFormat.PYTHON if is_model else AssetFormat.UNKNOWN
    if looks_like_pickle(head) or suffix in _OLD_PICKLES:
        return pickle_format(read_opcodes(decompress_head(source)))
    try:
        if looks_like_onnx(source):
            return AssetFormat.ONNX
        if source.path.name == SAVED_MODEL or looks_like_saved_model(source):
            return AssetFormat.SAVEDMODEL
    except BrokenFileError:
        if named is AssetFormat.ONNX or source.path.name == SAVED_MODEL:
            raise
    return AssetFormat.UNKNOWN


def _details(source: FileReader, kind: AssetFormat, max_opset: int | None) -> Details:
    if kind is AssetFormat.ONNX:
        return onnx_details(source, max_opset=max_opset)
    if source.head(4) == ZIP:
        return archive_details(source, kind)
    read = _READERS.get(kind)
    return Details(producer=kind.value.partition("-")[0]) if read is None else read(source)


def _pickle(source: FileReader) -> Details:
    return pickle_details(read_opcodes(decompress_head(source)))


def _python(_: FileReader) -> Details:
    message = "is Python: loading it runs code of its author"
    return Details(problems=(problem(AssetProblemKind.RUNS_CODE, message),))


def _keras_h5(source: FileReader) -> Details:
    if _LAMBDA.search(source.head(_MOST_HDF5)):
        message = "has a Lambda layer: Python code in the model"
        return Details(producer="keras", problems=(problem(AssetProblemKind.RUNS_CODE, message),))
    return Details(producer="keras")


_MAGIC_AT_4: Final = {b"TFL3": AssetFormat.TFLITE, b"ORTM": AssetFormat.ORT}
_XML_ROOTS: Final = {"net": AssetFormat.OPENVINO, "PMML": AssetFormat.PMML}
_READERS: Final[Mapping[AssetFormat, Callable[[FileReader], Details]]] = {
    AssetFormat.SAVEDMODEL: lambda source: saved_model_details(source, source.path.parent),
    AssetFormat.TFLITE: tflite_details,
    AssetFormat.OPENVINO: openvino_details,
    AssetFormat.SAFETENSORS: safetensors_details,
    AssetFormat.GGUF: gguf_details,
    AssetFormat.TORCH_PICKLE: _pickle,
    AssetFormat.PICKLE: _pickle,
    AssetFormat.SKLEARN: _pickle,
    AssetFormat.PYTHON: _python,
    AssetFormat.KERAS_H5: _keras_h5,
    AssetFormat.XGBOOST_JSON: xgboost_json_details,
    AssetFormat.XGBOOST_UBJ: xgboost_ubj_details,
    AssetFormat.LIGHTGBM: lightgbm_details,
}
