"""What a push has to pass, and what its failures mean to whoever pushes."""

import errno
import getpass
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from headrace.core import (
    VARIABLE,
    CodeNotAllowedError,
    FailedPreconditionError,
    Inspect,
    Inspected,
    InvalidArgumentError,
    ModelSignature,
    UnsupportedModelError,
)


def inspect_staged(
    inspect: Inspect, staged: Path, path: Path, runtime: str, *, allow_code: bool
) -> Inspected:
    """Inspect the copy of `path`; errors name the path that the caller knows."""
    try:
        return inspect(staged, runtime, allow_code=allow_code)
    except CodeNotAllowedError as error:
        raise CodeNotAllowedError(str(path), error.runtime, error.reason) from error
    except (UnsupportedModelError, FailedPreconditionError) as error:
        # Whoever inspects it may have been told where it is from the root.
        message = str(error).replace(str(staged.absolute()), str(path))
        raise type(error)(message.replace(str(staged), str(path))) from error


def check_labels(signature: ModelSignature, labels: Mapping[str, tuple[str, ...]]) -> None:
    """Check class names against the outputs they are for.

    Raises:
        InvalidArgumentError: There is no such output, or it has another number of classes.
    """
    for name, names in labels.items():
        spec = signature.output(name)
        if spec is None:
            outputs = ", ".join(f"'{spec.name}'" for spec in signature.outputs)
            msg = f"labels name the output '{name}', but the model has {outputs}"
            raise InvalidArgumentError(msg)
        size = spec.shape[-1] if spec.shape else VARIABLE
        if size not in (VARIABLE, len(names)):
            msg = f"output '{name}' has {size} classes, but {len(names)} labels are given"
            raise InvalidArgumentError(msg)


def stored_name(path: Path) -> str:
    """The name that the model keeps: a runtime may tell its format by the suffix."""
    name = path.resolve().name if path.name in ("", "..") else path.name
    return name.lstrip(".") or "model"


def user_name() -> str:
    """Who runs this process."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return f"uid {os.getuid()}"


@contextmanager
def storage_errors(what: str, home: Path) -> Iterator[None]:
    """Say what an operating system's error means for whoever asked."""
    try:
        yield
    except OSError as error:
        msg = f"{what}: {error.strerror or error}"
        if error.filename is not None:
            msg += f" ({error.filename})"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            msg += f"; {_free_bytes(home)} bytes are free, `headrace models gc` may free more"
        raise FailedPreconditionError(msg) from error


def _free_bytes(home: Path) -> int:
    directory = next(d for d in (home, *home.absolute().parents) if d.is_dir())
    return shutil.disk_usage(directory).free
