"""What stands in a repository of Feast's: which project, which online store, which registry?

`feature_store.yaml` is read as Feast reads it: `${NAME}` stands for a variable of the environment,
paths are relative to the file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from headrace.core import FailedPreconditionError
from headrace.core.redact import remember_resolved
from headrace.core.spec_yaml import MAX_BYTES, read_yaml
from headrace.features.feast.registry import Message, parse_registry

CONFIG: Final = "feature_store.yaml"
_KEY_VERSION: Final = 3
_VARIABLE: Final = re.compile(r"\$\{?(\w+)")
_MAX_REGISTRY_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class FeastRepository:
    """`online` is Feast's `online_store`, with its `type`.

    `is_versioned`: each version of a view has a table of its own in the online store.
    """

    path: Path
    project: str
    registry_path: Path
    online: Mapping[str, Any]
    is_versioned: bool = False

    def registry(self) -> Message:
        """The registry as it is now; FailedPreconditionError if it cannot be read."""
        try:
            with self.registry_path.open("rb") as file:
                data = file.read(_MAX_REGISTRY_BYTES)
        except OSError as error:
            message = (
                f"cannot read Feast's registry {self.registry_path}: {error.strerror}; "
                "`feast apply` writes it"
            )
            raise FailedPreconditionError(message) from error
        return parse_registry(data, str(self.registry_path))


def read_repository(path: Path) -> FeastRepository:
    """The repository in the folder `path`, or with the `feature_store.yaml` at `path`.

    Raises:
        FailedPreconditionError: It cannot be read, or has its registry where we cannot read it.
    """
    file = path / CONFIG if path.is_dir() else path
    config = _read(file)
    folder = file.absolute().parent
    project = config.get("project")
    if not isinstance(project, str) or not project:
        raise FailedPreconditionError(f"{file} has no `project`; is it one of Feast's?")
    version = config.get("entity_key_serialization_version", _KEY_VERSION)
    if version != _KEY_VERSION:
        message = (
            f"{file}: keys of another entity_key_serialization_version than {_KEY_VERSION} are not "
            "read; Feast says how to write them as version 3"
        )
        raise FailedPreconditionError(message)
    registry = config.get("registry", "data/registry.db")
    settings = registry if isinstance(registry, Mapping) else {"path": registry}
    online = config.get("online_store", {"type": "sqlite", "path": "data/online.db"})
    return FeastRepository(
        path=folder,
        project=project,
        registry_path=_registry_path(settings, folder, file),
        online=online if isinstance(online, Mapping) else {"type": str(online)},
        is_versioned=settings.get("enable_online_feature_view_versioning") is True,
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as opened:
            text = opened.read(MAX_BYTES + 1).decode()
    except OSError as error:
        message = f"cannot read {file}: {error.strerror}; name the folder where it stands"
        raise FailedPreconditionError(message) from error
    except UnicodeDecodeError:
        raise FailedPreconditionError(f"{file} is no UTF-8 text") from None
    for name in _VARIABLE.findall(text):
        remember_resolved(os.environ.get(name, ""), f"${{{name}}}")
    document = read_yaml(os.path.expandvars(text))
    if document.mistakes or not isinstance(document.value, Mapping):
        # Not the mistakes' own text: it quotes values, which may be of environment variables.
        lines = sorted({mistake.line or 0 for mistake in document.mistakes})
        why = f"line {', '.join(map(str, lines[:3]))} is not plain YAML" if lines else "no mapping"
        raise FailedPreconditionError(f"{file} cannot be read: {why}")
    return document.value


def _registry_path(settings: Mapping[str, Any], folder: Path, file: Path) -> Path:
    kind, path = settings.get("registry_type", "file"), settings.get("path")
    if kind != "file" or not isinstance(path, str) or "://" in path or "\0" in path or not path:
        message = (
            f"{file}: only a registry in a file of this machine is read (registry_type: file); "
            "copy yours there, and name it by `path` in a copy of feature_store.yaml"
        )
        raise FailedPreconditionError(message)
    return folder / path
