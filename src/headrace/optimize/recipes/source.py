"""Source of all recipes: the model as ONNX, with its own framework as a reference."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import Tensors
from headrace.core.error_kind import UNDECODABLE
from headrace.optimize.candidate import Candidate
from headrace.optimize.compare import MAX_CHANGED_RATIO
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source, source_runtime

_FILE: Final = "model.onnx"
_DONE: Final = "prepared.json"
_ONNX: Final = "onnx"
_FRAMEWORKS: Final = {
    "savedmodel": ("savedmodel", "TensorFlow, the unchanged SavedModel"),
    "tflite": ("tflite", "LiteRT, the unchanged file"),
    "torch_export": ("torch-eager", "PyTorch, the unchanged exported program"),
    "torchscript": ("torch-eager", "PyTorch, the unchanged TorchScript file"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Prepared model that recipes can rewrite."""

    onnx: Path
    """Path of the ONNX model."""
    frameworks: Sequence[Candidate] = ()
    """The source in its own library, as a reference."""
    notes: Sequence[str] = ()
    """Applied conversions, for display."""


class _Done(msgspec.Struct, frozen=True, kw_only=True):
    """Marker file of a finished conversion."""

    library: str
    note: str


def prepare(
    source: Path,
    runtime: str,
    folder: Path,
    *,
    allow_code: bool = False,
    data_rows: Tensors | None = None,
) -> Prepared:
    """Convert a model to verified ONNX; ONNX models are returned unchanged.

    Args:
        runtime: Runtime of the source; empty to detect it.
        folder: Output directory: empty, or with the result of an earlier call for the same source
            and arguments, which is reused, as converting may take half a minute.
        allow_code: Whether loading may run code of the model's author.
        data_rows: The user's rows to compare besides generated ones.

    Raises:
        CodeNotAllowedError: Loading would run code; nothing was run.
        UnsupportedModelError: It cannot be converted, or the answers differ too much.
        FailedPreconditionError: A package is not installed; the message says which.
    """
    if runtime == _ONNX:
        return Prepared(onnx=source)
    name = source_runtime(source, runtime)
    target, done = folder / _FILE, _done(folder)
    if done is None:
        opened = open_source(source, name, allow_code=allow_code)
        try:
            conversion = convert(
                opened, target, data_rows=data_rows, max_changed_ratio=MAX_CHANGED_RATIO
            )
        finally:
            opened.model.close()
        differences = conversion.differences
        note = (
            f"converted from {name} to ONNX by {conversion.converter}, opset {conversion.opset}: "
            f"on {differences.inputs} the outputs differ by at most "
            f"{differences.largest_relative:.2g} of their value"
        )
        done = _Done(library=conversion.library, note=note)
        (folder / _DONE).write_bytes(
            msgspec.json.encode(done)
        )  # last: marks the directory as complete
    title = _FRAMEWORKS.get(name, (name, f"{name}, the unchanged file"))
    details = {"what": "nothing is rewritten", "library": done.library}
    framework = Candidate(name=title[0], title=title[1], runtime=name, path=source, recipe=details)
    return Prepared(onnx=target, frameworks=(framework,), notes=(done.note,))


def is_prepared(folder: Path) -> bool:
    """Return whether the folder holds a finished conversion."""
    return _done(folder) is not None


def _done(folder: Path) -> _Done | None:
    if not (folder / _FILE).is_file():
        return None
    try:
        return msgspec.json.decode((folder / _DONE).read_bytes(), type=_Done)
    except (OSError, *UNDECODABLE):
        return None
