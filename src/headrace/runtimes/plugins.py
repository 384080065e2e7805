"""Registry of runtimes: entry points that load on first use, and unsupported formats.

A package adds a runtime with an entry point in the group `headrace.runtimes`:

    [project.entry-points."headrace.runtimes"]
    mine = "my_package:MyRuntime"
"""

import logging
import time
import zipfile
from collections.abc import Callable
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from headrace.core import (
    VARIABLE,
    CodeNotAllowedError,
    FailedPreconditionError,
    FirstRun,
    HeadraceError,
    Inspected,
    InvalidArgumentError,
    Tensors,
    UnsupportedModelError,
    error_kind,
    example_inputs,
)
from headrace.runtimes.base import LoadOptions, Model, Runtime
from headrace.runtimes.libraries import framework_of, how_to_install, missing_library
from headrace.runtimes.probe import VARIABLE_SIZES

_HEAD_BYTES: Final = 512
_MAX_NAMES: Final = 10_000
_SAVED_MODEL: Final = "export it with `model.export(DIRECTORY)`, and push that directory"
_NOT_INSIDE: Final = "by its name, but not by its content"
_TORCH_EXPORT: Final = "export the model to ONNX with torch.onnx.export"
_BY_SUFFIX: Final = {
    ".bst": ("an XGBoost file of the old binary format", "save it again as .json or .ubj"),
    ".cbm": (f"a CatBoost file {_NOT_INSIDE}", "save it again"),
    ".engine": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".ggml": ("a GGML file", "convert it to GGUF with a script of llama.cpp"),
    ".gguf": (f"a GGUF file {_NOT_INSIDE}", "download it again"),
    ".h5": ("a Keras file", _SAVED_MODEL),
    ".hdf5": ("a Keras file", _SAVED_MODEL),
    ".keras": ("a Keras file", _SAVED_MODEL),
    ".mlmodel": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".mlpackage": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".pb": ("a TensorFlow graph", "push the SavedModel directory that it lies in"),
    ".pdmodel": ("a PaddlePaddle model", "name what runs it: `--runtime openvino`"),
    ".plan": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".pmml": ("a PMML file", "export the model to ONNX from the library that trained it"),
    ".pt2": (f"a PyTorch program {_NOT_INSIDE}", "save it again with torch.export.save"),
    ".rds": ("an object of R", "export the model to ONNX, or save XGBoost's as .json"),
    ".safetensors": (
        "weights without the model that they belong to",
        f"push the Hugging Face folder that it lies in, or {_TORCH_EXPORT}",
    ),
    ".tflite": (f"a TensorFlow Lite file {_NOT_INSIDE}", "convert it again"),
    ".xml": (f"an OpenVINO file {_NOT_INSIDE}", "save it again with openvino.save_model"),
}
_BY_HEAD: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model", "run `git lfs pull`"),
    (b"\x89HDF", "an HDF5 file, as Keras writes", _BY_SUFFIX[".h5"][1]),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first"),
    (b"BZh", "compressed (bzip2)", "unpack it first"),
    (b"\xfd7zXZ", "compressed (xz)", "unpack it first"),
    (b"binf", "an XGBoost file of the old binary format", "save it again as .json or .ubj"),
)
_IN_DIRECTORIES: Final = (
    ("saved_model.pb", f"a SavedModel {_NOT_INSIDE}", _SAVED_MODEL),
    ("model_index.json", "a diffusers pipeline", "export its parts to ONNX with optimum"),
    ("metadata.json", "a Keras folder", _SAVED_MODEL),
    (
        "config.json",
        "a folder whose config.json names no `architectures`",
        "save the model with save_pretrained of transformers, or export it to ONNX",
    ),
    ("config.pbtxt", "a model of a Triton repository", "push the file in its version's folder"),
)


def what_else(path: Path) -> str:
    """Return the format of a file or directory and the remedy; empty if it is unknown."""
    description = _directory(path) if path.is_dir() else _file(path)
    return f"is {description[0]}; {description[1]}" if description else ""


def _directory(path: Path) -> tuple[str, str] | None:
    if not any(path.iterdir()):
        return "an empty directory", "name the model's file, or the directory that holds it"
    for name, description, advice in _IN_DIRECTORIES:
        if (path / name).is_file():
            return description, advice
    return _BY_SUFFIX.get(path.suffix.lower())


def _file(path: Path) -> tuple[str, str] | None:
    head = _head(path)
    if not head:
        return "empty (0 bytes)", "copy it again"
    for magic, description, advice in _BY_HEAD:
        if head.startswith(magic):
            return description, advice
    return _archive(path) if head.startswith(_ZIP) else _BY_SUFFIX.get(path.suffix.lower())


def _archive(path: Path) -> tuple[str, str] | None:
    names = _names_in(path)
    if names is None:
        return "an archive that is truncated or corrupt", "copy it again"
    ends = {name.rpartition("/")[2] for name in names}
    if "model.weights.h5" in ends:
        return _BY_SUFFIX[".keras"]
    if path.suffix == ".pt2":
        return _BY_SUFFIX[".pt2"]
    if "model.ini" in ends:
        return "an H2O MOJO", "export the model to ONNX, or serve it with H2O as an `upstream`"
    return "an archive", "unpack it and push the directory"


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _names_in(archive: Path) -> list[str] | None:
    """Return the first names in a ZIP file, without reading content; None if it is damaged."""
    try:
        with zipfile.ZipFile(archive) as opened:
            return opened.namelist()[:_MAX_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return None


_PICKLE_SUFFIXES: Final = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"})
_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin"})
_PICKLES: Final = tuple(bytes([0x80, version]) for version in (2, 3, 4, 5))
_ZIP: Final = b"PK\x03\x04"


def code_in(path: Path) -> str:
    """Return why a file, or the first such file in a directory, is refused as code; else empty.

    Examines names, first bytes and the lists of names in archives; nothing is loaded.
    """
    if path.is_file():
        return _code_in_file(path, path.name)
    for file in sorted(path.rglob("*")):
        if file.is_file() and (reason := _code_in_file(file, str(file.relative_to(path)))):
            return reason
    return ""


def _code_in_file(file: Path, name: str) -> str:
    suffix = file.suffix.lower()
    head = _head(file)
    description = ""
    if suffix in _PICKLE_SUFFIXES:
        description = "a pickle"
    elif head.startswith(_PICKLES) and suffix not in {".onnx", ".ort"}:
        description = "a pickle, by its first bytes"
    elif head.startswith(_ZIP) and any(
        name.lower().endswith((".pkl", ".pickle", ".joblib")) for name in _names_in(file) or ()
    ):
        kind = "a PyTorch archive" if suffix in _TORCH_SUFFIXES else "an archive"
        description = f"{kind} with a pickle in it"
    if not description:
        return ""
    or_else = (
        " with torch.onnx.export, or save it with torch.export.save or torch.jit.save"
        if suffix in _TORCH_SUFFIXES
        else ", or write scikit-learn's with skops.io.dump or joblib.dump, and XGBoost's, "
        "LightGBM's and CatBoost's with save_model"
    )
    return (
        f"'{name}' is {description}, which can run arbitrary code when it is loaded, and no runtime"
        f" loads it; export the model to ONNX{or_else}"
    )


_SLOW_S: Final = 1.0
"""Duration of a run from which it is not repeated for a better figure."""


def generated_inputs(model: Model, *, rows: int = 1, variable: int = 1) -> Tensors:
    """Return the model's own example inputs if it has any, else ones that fit its signature.

    A model may have a method `example_inputs(rows=, variable=)`, such as an image model.
    """
    example = getattr(model, "example_inputs", None)
    if example is None:
        return example_inputs(model.signature, rows=rows, variable=variable)
    inputs: Tensors = example(rows=rows, variable=variable)
    return inputs


def first_run(model: Model, clock: Callable[[], float] = time.perf_counter) -> FirstRun:
    """Run one row and return the result. Real inputs may work where generated ones fail."""

    def timed(inputs: Tensors) -> float:
        started = clock()
        model.run(inputs)
        return clock() - started

    signature = model.signature
    shapes = (spec.shape[1:] if signature.batched else spec.shape for spec in signature.inputs)
    sizes = VARIABLE_SIZES if any(VARIABLE in shape for shape in shapes) else VARIABLE_SIZES[:1]
    error = ""
    for size in sizes:
        inputs = generated_inputs(model, variable=size)
        try:
            run_s = timed(inputs)
            # One-time setup of a library does not count as inference.
            return FirstRun(run_s=run_s if run_s > _SLOW_S else timed(inputs))
        except HeadraceError as failed:
            error = error or str(failed)
    return FirstRun(error=error)


ENTRY_POINT_GROUP: Final = "headrace.runtimes"
_log = logging.getLogger(__name__)


@cache
def _entry_points() -> dict[str, EntryPoint]:
    entries = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    return {entry.name: entry for entry in entries}


@cache
def _load(name: str) -> Runtime:
    runtime: Runtime = _entry_points()[name].load()()
    return runtime


def runtime_names() -> tuple[str, ...]:
    """Return the names of all installed runtimes, sorted, without importing them."""
    return tuple(_entry_points())


def usable_runtimes() -> tuple[str, ...]:
    """Return the names of runtimes that are installed with their libraries."""
    return tuple(name for name in runtime_names() if not _why_not(name))


def runtimes_text() -> str:
    """Return a text of the usable runtimes and what the others lack."""
    usable = ", ".join(usable_runtimes()) or "none"
    others = [f"'{name}' {reason}" for name in runtime_names() if (reason := _why_not(name))]
    return f"available runtimes: {usable}" + "".join(f"; {other}" for other in others)


def get_runtime(name: str) -> Runtime:
    """Return the runtime of this name.

    Raises:
        InvalidArgumentError: It does not exist; the message lists the usable runtimes.
        FailedPreconditionError: It is installed but cannot be imported; the message says why.
    """
    if name not in _entry_points():
        raise InvalidArgumentError(f"unknown runtime '{name}'; {runtimes_text()}")
    try:
        return _load(name)
    except Exception as error:
        origin = _entry_points()[name].value
        msg = f"runtime '{name}' ({origin}) cannot be loaded: {type(error).__name__}: {error}"
        raise FailedPreconditionError(msg) from error


def detect_runtime(path: Path) -> Runtime:
    """Return the only runtime that recognises `path`; a broken runtime is skipped.

    Raises:
        UnsupportedModelError: No runtime or several recognise it, or the path does not exist.
    """
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or directory")
    names = [name for name in runtime_names() if _recognises(name, path)]
    # A manifest in a directory takes precedence over other files there.
    names = [n for n in names if getattr(get_runtime(n), "has_manifest", False)] or names
    if len(names) == 1:
        return get_runtime(names[0])
    if names:
        msg = f"{path}: several runtimes recognise it ({', '.join(names)}); name one of them"
        raise UnsupportedModelError(msg)
    raise UnsupportedModelError(f"{path}: {code_in(path) or _unknown(path)}")


def load_model(path: Path, runtime: str = "", options: LoadOptions | None = None) -> Model:
    """Load a model, ready to run; the caller closes it.

    Args:
        runtime: Name of the runtime; empty detects it.
        options: None for one thread, and an accelerator if there is one.

    Raises:
        UnsupportedModelError: The model cannot be loaded; the message says why.
        InvalidArgumentError: No runtime has this name.
        FailedPreconditionError: The runtime itself cannot be loaded.
    """
    plugin = _choose(path, runtime)
    try:
        return plugin.load(path, options or LoadOptions())
    except HeadraceError:
        raise
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _failed(plugin, path, error) from None


def inspect_model(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    """Load a model once and return its runtime, its signature and the result of a first run.

    Args:
        runtime: Name of the runtime; empty detects it.
        allow_code: Whether the model may be of a format that runs its author's code.

    Raises:
        CodeNotAllowedError: It would run code; none of it was run.
        UnsupportedModelError: It cannot be loaded; the message says why.
        InvalidArgumentError: No runtime has this name.
        FailedPreconditionError: The runtime itself cannot be loaded.
    """
    plugin = _choose(path, runtime)
    has_code = runs_code(plugin, path)
    if has_code and not allow_code:
        raise CodeNotAllowedError(str(path), plugin.name, code_of_model(plugin, path))
    check_libraries(plugin, path)
    if not has_code and (reason := code_in(path)):
        # The file may be unused, but a user who moves the model elsewhere would not know of it.
        raise UnsupportedModelError(f"{path}: {reason}")
    try:
        model = plugin.load(path, LoadOptions(device="cpu"))
        try:
            # A language model is not run: its weights may not fit into this machine's memory.
            facts = getattr(model, "facts", None)
            if facts is not None:
                return Inspected(plugin.name, model.signature, has_code, metadata=facts())
            return Inspected(plugin.name, model.signature, has_code, first_run(model))
        finally:
            model.close()
    except HeadraceError:
        raise
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise _failed(plugin, path, error) from None


def check_libraries(runtime: Runtime, path: Path) -> None:
    """Check that the library of a model's runtime is installed.

    Raises:
        FailedPreconditionError: It is not; the message says what to install.
    """
    if package := missing_library(runtime):
        raise FailedPreconditionError(
            f"{path} is a model of the runtime '{runtime.name}', whose package '{package}' "
            f"is not installed: {how_to_install(runtime)}"
        )


def framework_named(runtime: str) -> str:
    """Return the package of `FRAMEWORKS` that a runtime uses here, by its name; empty for none."""
    try:
        return framework_of(get_runtime(runtime))
    except HeadraceError:  # the runtime is installed where the model runs, not here
        return ""


def runs_code(runtime: Runtime, path: Path) -> bool:
    """Whether the model at `path` runs its author's code; true if the plug-in does not declare it.

    Raises:
        UnsupportedModelError: The model is damaged.
    """
    return getattr(runtime, "runs_code", True) is not False or bool(code_of_model(runtime, path))


def code_of_model(runtime: Runtime, path: Path) -> str:
    """Return the author's code in this model if only some of its format have any; else empty.

    Raises:
        UnsupportedModelError: The model is damaged.
    """
    observation = getattr(runtime, "code_in", None)
    if observation is None or getattr(runtime, "runs_code", True) is not False:
        return ""
    code: str = observation(path)
    return code


def _choose(path: Path, runtime: str) -> Runtime:
    if not runtime:
        return detect_runtime(path)
    plugin = get_runtime(runtime)
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or directory")
    return plugin


def _unknown(path: Path) -> str:
    """Return why no runtime recognises a path, and which formats are supported."""
    if reason := what_else(path):
        return f"{reason} (no runtime loads it; {runtimes_text()})"
    description = "directory" if path.is_dir() else "file"
    return (
        f"no runtime recognises this {description}; {runtimes_text()}; export the model to ONNX if "
        "its library is not among them"
    )


def _why_not(name: str) -> str:
    """Return why a runtime cannot be used, by its name; empty if it can."""
    try:
        runtime = get_runtime(name)
    except HeadraceError:
        return "cannot be loaded"
    package = missing_library(runtime)
    return f"lacks '{package}' ({how_to_install(runtime)})" if package else ""


def _recognises(name: str, path: Path) -> bool:
    try:
        return get_runtime(name).recognises(path)
    except Exception as error:  # noqa: BLE001  # a broken plug-in must not hide the others
        _log.warning("runtime '%s' is skipped: %s", name, _reason(error))
        return False


def _failed(plugin: Runtime, path: Path, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path}: runtime '{plugin.name}' failed: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return str(error)
    return error_kind(error)
