"""Open a directory of models as Triton lays it out: `MODEL/VERSION/model.onnx`.

Versions keep their numbers. Of `config.pbtxt` the fields that can be honoured are read: platform or
backend, the maximum batch size and the file of class names; the rest is ignored, with a warning.
"""

import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import (
    NAME_PATTERN,
    VERSION_PATTERN,
    HeadraceError,
    Inspect,
    InvalidArgumentError,
    ModelSignature,
)

_CONFIG: Final = "config.pbtxt"
_MAX_BATCH_SIZE: Final = re.compile(r"^\s*max_batch_size\s*:\s*(\d+)", re.MULTILINE)
_DEFAULT_FILENAME: Final = re.compile(r'^\s*default_model_filename\s*:\s*"([^"/]+)"', re.MULTILINE)
_FIELD: Final = re.compile(r'\b(name|label_filename)\s*:\s*"([^"]+)"')
_OUTPUT_BLOCK: Final = re.compile(
    r"\boutput\s*:?\s*(?:\[(.*?)\]\s*(?=\n\S|\Z)|\{(.*?)\})", re.DOTALL
)
_DEFAULT_NAMES: Final = ("model.onnx", "model.py", "model.savedmodel")
_RUNNER: Final = re.compile(r'^\s*(platform|backend)\s*:\s*"([^"]+)"', re.MULTILINE)
_RUNTIMES: Final = {
    "onnxruntime": "onnx",
    "onnxruntime_onnx": "onnx",
    "openvino": "openvino",
    "tensorflow": "savedmodel",
    "tensorflow_savedmodel": "savedmodel",
}
"""By Triton's name for what runs a model; what is not here is told by its files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One version found in a repository.

    `reason` says why it cannot be served; empty if it can. `runtime` and `signature` are known only
    if it was inspected. `max_batch_size`: None if the repository does not say, 0 for unbatched.
    """

    name: str
    version: str
    path: Path
    reason: str = ""
    runtime: str = ""
    signature: ModelSignature | None = None
    runs_code: bool = False
    max_batch_size: int | None = None
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Config:
    """What is read of a `config.pbtxt`."""

    max_batch_size: int | None = None
    filename: str = ""
    runtime: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def is_repository(path: Path) -> bool:
    """Whether `path` is laid out like a repository: some directory in it holds a numbered one."""
    return path.is_dir() and any(
        _versions(model) for model in _directories(path) if re.match(NAME_PATTERN, model.name)
    )


def open_repository(
    path: Path, inspect: Inspect | None = None, *, allow_code: bool = False
) -> list[FoundModel]:
    """Every version of every model under `path`, by name and number; broken ones with the reason.

    Args:
        inspect: Loads each model to prove that it can be served; None only looks at the files.
        allow_code: Whether models may be of formats that run their authors' code.

    Raises:
        InvalidArgumentError: `path` is not laid out like a repository.
    """
    if not is_repository(path):
        msg = f"{path}: is no model repository; that is laid out as MODEL/VERSION/model.onnx"
        raise InvalidArgumentError(msg)
    return [
        found
        for model in _directories(path)
        for found in _read_model(model, inspect, allow_code=allow_code)
    ]


def _read_model(model: Path, inspect: Inspect | None, *, allow_code: bool) -> Iterator[FoundModel]:
    versions = _versions(model)
    if not versions:
        _log.warning("%s holds no numbered version and is ignored", model)
        return
    reason = ""
    if re.match(NAME_PATTERN, model.name) is None:
        reason = f"the model name '{model.name}' is not allowed"
    config = _read_config(model)
    for directory in versions:
        yield _read_version(model.name, directory, config, reason, inspect, allow_code=allow_code)


def _read_version(
    name: str,
    directory: Path,
    config: _Config,
    reason: str,
    inspect: Inspect | None,
    *,
    allow_code: bool,
) -> FoundModel:
    path = _model_path(directory, config)
    runtime, signature, runs_code = "", None, False
    if not reason and inspect is not None:
        try:
            runtime, signature, runs_code, _ = inspect(path, config.runtime, allow_code=allow_code)
        except HeadraceError as error:
            reason = str(error)
    return FoundModel(
        name=name,
        version=str(int(directory.name)),
        path=path,
        reason=reason,
        runtime=runtime,
        signature=signature,
        runs_code=runs_code,
        max_batch_size=config.max_batch_size,
        labels=config.labels,
    )


def _model_path(directory: Path, config: _Config) -> Path:
    """The model's own file if nothing lies beside it, else the directory with its other files."""
    names = [config.filename] if config.filename else _DEFAULT_NAMES
    folders = [directory / name for name in names if (directory / name).is_dir()]
    if len(folders) == 1:
        return folders[0]
    files = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
    if len(files) == 1 and (files[0].name in names or files[0].is_file()):
        return files[0]
    return directory


def _directories(path: Path) -> list[Path]:
    found = (entry for entry in path.iterdir() if entry.is_dir())
    return sorted(entry for entry in found if not entry.name.startswith("."))


def _versions(model: Path) -> list[Path]:
    found = [entry for entry in _directories(model) if re.match(VERSION_PATTERN, entry.name)]
    return sorted(found, key=lambda entry: int(entry.name))


def _read_config(model: Path) -> _Config:
    file = model / _CONFIG
    if not file.is_file():
        return _Config()
    text = file.read_text(encoding="utf-8", errors="replace")
    text = re.sub(r"#.*", "", text)
    size = _MAX_BATCH_SIZE.search(text)
    filename = _DEFAULT_FILENAME.search(text)
    runtimes = {_RUNTIMES[name] for _, name in _RUNNER.findall(text) if name in _RUNTIMES}
    _log.warning(
        "%s: only platform, backend, max_batch_size, default_model_filename and label_filename are "
        "read; inputs and outputs come from the model itself, if it says them",
        file,
    )
    return _Config(
        max_batch_size=int(size[1]) if size else None,
        filename=filename[1] if filename else "",
        runtime=runtimes.pop() if len(runtimes) == 1 else "",
        labels=_read_labels(model, text),
    )


def _read_labels(model: Path, config: str) -> dict[str, tuple[str, ...]]:
    labels: dict[str, tuple[str, ...]] = {}
    for block in _OUTPUT_BLOCK.finditer(config):
        output = ""
        for key, value in _FIELD.findall(block[1] or block[2]):
            if key == "name":
                output = value
            elif output:
                labels |= _label_file(model, output, value)
    return labels


def _label_file(model: Path, output: str, filename: str) -> dict[str, tuple[str, ...]]:
    file = model / filename
    if not file.resolve().is_relative_to(model.resolve()) or not file.is_file():
        _log.warning("%s: the labels of output '%s' are not there", file, output)
        return {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    return {output: tuple(line.strip() for line in lines if line.strip())}
