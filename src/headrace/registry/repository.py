"""Model repository in Triton's layout: `MODEL/VERSION/model.onnx` beside `MODEL/config.pbtxt`.

Versions keep their numbers. The supported fields of a `config.pbtxt` are read: platform or backend,
the maximum batch size, the version policy, file names, and the formats and class names of tensors;
the rest is ignored, with a warning.
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
    RequestCancelledError,
    pbtxt,
)
from headrace.core.pbtxt import Message

_CONFIG: Final = "config.pbtxt"
_MAX_CONFIG_BYTES: Final = 1 << 20
_FORMATS: Final = frozenset({"FORMAT_NHWC", "FORMAT_NCHW"})
_DEFAULT_NAMES: Final = ("model.onnx", "model.py", "model.savedmodel")
_RUNTIMES: Final = {
    "onnxruntime": "onnx",
    "onnxruntime_onnx": "onnx",
    "openvino": "openvino",
    "tensorflow": "savedmodel",
    "tensorflow_savedmodel": "savedmodel",
}
"""Headrace runtime by Triton's platform or backend; others are detected from the files."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryConfig:
    """Supported settings of a `config.pbtxt`."""

    max_batch_size: int | None = None
    """None if absent; 0 means that the first axis of the tensors is not a batch axis."""
    filename: str = ""
    runtime: str = ""
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names by output."""
    formats: Mapping[str, str] = field(default_factory=dict)
    """Triton's name of the axis order of an image, by input."""
    policy: Message = field(default_factory=dict)
    """`version_policy`; empty for the newest version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundModel:
    """One version that a repository serves."""

    name: str
    version: str
    path: Path
    reason: str = ""
    """Reason why it cannot be served; empty if it can."""
    runtime: str = ""
    """Set only by an inspection, like `signature` and `runs_code`."""
    signature: ModelSignature | None = None
    runs_code: bool = False
    config: RepositoryConfig = RepositoryConfig()


def is_repository(path: Path) -> bool:
    """Return whether some directory in `path` holds a numbered one, as in a repository."""
    return path.is_dir() and any(
        _versions(model) for model in _directories(path) if re.match(NAME_PATTERN, model.name)
    )


def open_repository(
    path: Path, inspect: Inspect | None = None, *, allow_code: bool = False
) -> list[FoundModel]:
    """Return the versions that each model's policy serves; broken ones have a `reason`.

    Args:
        inspect: Loads each model to check it; None only lists the files.
        allow_code: Whether models may be of formats that run their authors' code.

    Raises:
        InvalidArgumentError: `path` is not laid out like a repository.
    """
    if not is_repository(path):
        msg = f"{path}: is not a model repository, which has the layout MODEL/VERSION/model.onnx"
        raise InvalidArgumentError(msg)
    return [
        version
        for model in _directories(path)
        for version in _read_model(model, inspect, allow_code=allow_code)
    ]


def _read_model(model: Path, inspect: Inspect | None, *, allow_code: bool) -> Iterator[FoundModel]:
    versions = _versions(model)
    if not versions:
        _log.warning("%s holds no numbered version and is ignored", model)
        return
    reason, config = "", RepositoryConfig()
    try:
        config = _read_config(model)
        versions = _served(versions, config.policy)
    except InvalidArgumentError as error:
        reason, versions = f"{model / _CONFIG} {error}", versions[-1:]
    if re.match(NAME_PATTERN, model.name) is None:
        reason = f"the model name '{model.name}' is not allowed"
    for directory in versions:
        yield _read_version(model.name, directory, config, reason, inspect, allow_code=allow_code)


def _read_version(
    name: str,
    directory: Path,
    config: RepositoryConfig,
    reason: str,
    inspect: Inspect | None,
    *,
    allow_code: bool,
) -> FoundModel:
    path = _model_path(directory, config)
    runtime, signature, runs_code = "", None, False
    if not reason and inspect is not None:
        try:
            inspected = inspect(path, config.runtime, allow_code=allow_code)
            runtime, signature, runs_code = inspected[:3]
            _check_tensors(signature, config)
        except RequestCancelledError:
            raise
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
        config=config,
    )


def _check_tensors(signature: ModelSignature, config: RepositoryConfig) -> None:
    """Raise InvalidArgumentError if the configuration names tensors that the model lacks."""
    for kind, names, specs in (
        ("input", config.formats, signature.inputs),
        ("output", config.labels, signature.outputs),
    ):
        available = [spec.name for spec in specs]
        for name in names:
            if name not in available:
                msg = f"{_CONFIG} names {kind} '{name}', but the model has: {', '.join(available)}"
                raise InvalidArgumentError(msg)


def _served(versions: list[Path], policy: Message) -> list[Path]:
    """Return the versions that a policy selects, ascending; the default is the newest.

    Raises:
        InvalidArgumentError: The policy is unknown, or selects no existing version.
    """
    selected = versions[-1:]
    if latest := pbtxt.messages(policy, "latest"):
        count = pbtxt.count(latest[-1], "num_versions")
        selected = versions[-max(1 if count is None else count, 1) :]
    elif "all" in policy:
        selected = versions
    elif specific := pbtxt.messages(policy, "specific"):
        numbers = {int(n) for n in pbtxt.texts(specific[-1], "versions") if n.isdecimal()}
        selected = [directory for directory in versions if int(directory.name) in numbers]
        missing = numbers - {int(directory.name) for directory in selected}
        if missing or not selected:
            names = ", ".join(map(str, sorted(missing))) or "none"
            available = ", ".join(str(int(directory.name)) for directory in versions)
            msg = f"selects versions {names} in version_policy; existing versions: {available}"
            raise InvalidArgumentError(msg)
    elif policy:
        msg = f"has a version_policy other than latest, all or specific: {', '.join(policy)}"
        raise InvalidArgumentError(msg)
    return selected


def _model_path(directory: Path, config: RepositoryConfig) -> Path:
    """Return the model file if it is alone, else the directory with its other files."""
    names = [config.filename] if config.filename else _DEFAULT_NAMES
    folders = [directory / name for name in names if (directory / name).is_dir()]
    if len(folders) == 1:
        return folders[0]
    files = [entry for entry in directory.iterdir() if not entry.name.startswith(".")]
    if len(files) == 1 and (files[0].name in names or files[0].is_file()):
        return files[0]
    return directory


def _directories(path: Path) -> list[Path]:
    directories = (entry for entry in path.iterdir() if entry.is_dir())
    return sorted(entry for entry in directories if not entry.name.startswith("."))


def _versions(model: Path) -> list[Path]:
    versions = [entry for entry in _directories(model) if re.match(VERSION_PATTERN, entry.name)]
    return sorted(versions, key=lambda entry: int(entry.name))


def _read_config(model: Path) -> RepositoryConfig:
    """Read a model's configuration.

    Raises:
        InvalidArgumentError: It cannot be read.
    """
    file = model / _CONFIG
    if not file.is_file():
        return RepositoryConfig()
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        msg = f"has more than {_MAX_CONFIG_BYTES} bytes"
        raise InvalidArgumentError(msg)
    config = pbtxt.parse_message(file.read_text(encoding="utf-8", errors="replace"))
    runners = [*pbtxt.texts(config, "platform"), *pbtxt.texts(config, "backend")]
    runtimes = {_RUNTIMES[name] for name in runners if name in _RUNTIMES}
    _log.warning(
        "%s: only platform, backend, max_batch_size, version_policy, default_model_filename, "
        "format and label_filename are read; inputs and outputs come from the model itself if it "
        "declares them",
        file,
    )
    filename = pbtxt.text(config, "default_model_filename")
    policies = pbtxt.messages(config, "version_policy")
    return RepositoryConfig(
        max_batch_size=pbtxt.count(config, "max_batch_size"),
        filename="" if "/" in filename else filename,
        runtime=runtimes.pop() if len(runtimes) == 1 else "",
        labels=_read_labels(model, config),
        formats={
            pbtxt.text(tensor, "name"): kind
            for tensor in pbtxt.messages(config, "input")
            if (kind := pbtxt.text(tensor, "format")) in _FORMATS
        },
        policy=policies[-1] if policies else {},
    )


def _read_labels(model: Path, config: Message) -> dict[str, tuple[str, ...]]:
    """Read the class names of outputs from the existing label files."""
    labels: dict[str, tuple[str, ...]] = {}
    for output in pbtxt.messages(config, "output"):
        name, filename = pbtxt.text(output, "name"), pbtxt.text(output, "label_filename")
        file = model / filename
        if not filename:
            continue
        if not file.resolve().is_relative_to(model.resolve()) or not file.is_file():
            _log.warning("%s: the label file of output '%s' does not exist", file, name)
            continue
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        labels[name] = tuple(line.strip() for line in lines if line.strip())
    return labels
