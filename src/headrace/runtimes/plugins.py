"""Which runtimes are there? Entry points, loaded on first use; the built-in ones are no different.

A package adds a runtime with an entry point in the group `headrace.runtimes`:

    [project.entry-points."headrace.runtimes"]
    mine = "my_package:MyRuntime"
"""

import logging
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Final

from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    Inspected,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.runtimes.base import LoadOptions, Model, Runtime
from headrace.runtimes.refused_formats import code_in

ENTRY_POINT_GROUP: Final = "headrace.runtimes"

_log = logging.getLogger(__name__)


@cache
def _entry_points() -> dict[str, EntryPoint]:
    found = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name)
    return {entry.name: entry for entry in found}


@cache
def _load(name: str) -> Runtime:
    runtime: Runtime = _entry_points()[name].load()()
    return runtime


def runtime_names() -> tuple[str, ...]:
    """The names of all installed runtimes, sorted; nothing is imported."""
    return tuple(_entry_points())


def get_runtime(name: str) -> Runtime:
    """The runtime of this name.

    Raises:
        InvalidArgumentError: There is none; the message lists those that are installed.
        FailedPreconditionError: It is installed but cannot be imported; the message says why.
    """
    if name not in _entry_points():
        msg = f"there is no runtime '{name}'; installed are {', '.join(runtime_names()) or 'none'}"
        raise InvalidArgumentError(msg)
    try:
        return _load(name)
    except Exception as error:
        origin = _entry_points()[name].value
        msg = f"runtime '{name}' ({origin}) cannot be loaded: {_reason(error)}"
        raise FailedPreconditionError(msg) from error


def detect_runtime(path: Path) -> Runtime:
    """The one runtime that recognises `path`; a runtime that is broken is passed over.

    Raises:
        UnsupportedModelError: None or several do, or there is no such path.
    """
    if not path.exists():
        msg = f"{path}: no such file or directory"
        raise UnsupportedModelError(msg)
    found = [name for name in runtime_names() if _recognises(name, path)]
    if len(found) == 1:
        return get_runtime(found[0])
    if not found and (reason := code_in(path)):
        raise UnsupportedModelError(f"{path}: {reason}")
    if found:
        msg = f"{path}: several runtimes recognise it ({', '.join(found)}); name the one to use"
    else:
        what = "directory" if path.is_dir() else "file"
        msg = (
            f"{path}: no runtime recognises this {what}; installed are "
            f"{', '.join(runtime_names()) or 'none'}"
        )
    raise UnsupportedModelError(msg)


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
    except Exception as error:
        raise _failed(plugin, path, error) from error


def inspect_model(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
    """The name of the model's runtime and its signature, once it is proved to load.

    Args:
        runtime: Name of the runtime; empty detects it.
        allow_code: Whether the model may be of a format that runs its author's code.

    Raises:
        CodeNotAllowedError: It would run code; nothing of it was run.
        UnsupportedModelError: It cannot be loaded; the message says why.
        InvalidArgumentError: No runtime has this name.
        FailedPreconditionError: The runtime itself cannot be loaded.
    """
    plugin = _choose(path, runtime)
    code = code_of_model(plugin, path)
    if (runs_code(plugin) or code) and not allow_code:
        raise CodeNotAllowedError(str(path), plugin.name, code)
    if not runs_code(plugin) and (reason := code_in(path)):
        # It may lie there unused, but nobody who takes the model elsewhere would know.
        raise UnsupportedModelError(f"{path}: {reason}")
    try:
        return Inspected(plugin.name, plugin.inspect(path), runs_code(plugin) or bool(code))
    except HeadraceError:
        raise
    except Exception as error:
        raise _failed(plugin, path, error) from error


def runs_code(runtime: Runtime) -> bool:
    """Whether models of this runtime run their authors' code; a plug-in that is silent does."""
    return getattr(runtime, "runs_code", True) is not False


def code_of_model(runtime: Runtime, path: Path) -> str:
    """What in this one model is code of its author's, where not all of its format are; else empty.

    Raises:
        UnsupportedModelError: The model is damaged.
    """
    look = getattr(runtime, "code_in", None)
    if look is None or runs_code(runtime):
        return ""
    found: str = look(path)
    return found


def _choose(path: Path, runtime: str) -> Runtime:
    if not runtime:
        return detect_runtime(path)
    plugin = get_runtime(runtime)
    if not path.exists():
        msg = f"{path}: no such file or directory"
        raise UnsupportedModelError(msg)
    return plugin


def _recognises(name: str, path: Path) -> bool:
    try:
        return get_runtime(name).recognises(path)
    except Exception as error:  # noqa: BLE001  # a broken plug-in must not hide the others
        _log.warning("runtime '%s' is passed over: %s", name, _reason(error))
        return False


def _failed(plugin: Runtime, path: Path, error: Exception) -> UnsupportedModelError:
    return UnsupportedModelError(f"{path}: runtime '{plugin.name}' failed: {_reason(error)}")


def _reason(error: Exception) -> str:
    if isinstance(error, HeadraceError):
        return str(error)
    return f"{type(error).__name__}: {error}"
