"""How does the state of before the database come into it? Once, and its file is renamed."""

import logging
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.desired import DesiredState
from headrace.control.state.database import Database
from headrace.control.state.desired_rows import load_state, save_state
from headrace.core import FailedPreconditionError
from headrace.core.files import move

_LOG: Final = logging.getLogger("headrace.control")
_FORMAT: Final = 1


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    state: DesiredState


def read_legacy(path: Path) -> DesiredState | None:
    """The state in the file that Headrace 0.1 wrote; None if there is none.

    Raises:
        FailedPreconditionError: It cannot be read.
    """
    try:
        stored = msgspec.json.decode(path.read_bytes(), type=_Stored)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError, msgspec.MsgspecError) as error:
        message = f"cannot read {path}: {error}; move it away to start from the spec file"
        raise FailedPreconditionError(message) from error
    if stored.format != _FORMAT:
        message = f"{path} has format {stored.format}; this version reads {_FORMAT}"
        raise FailedPreconditionError(message)
    return stored.state


def import_legacy(database: Database, path: Path) -> None:
    """Take over the state in `path` if the database has none, and rename the file.

    A crash in between leaves both, and the next start only renames.

    Raises:
        FailedPreconditionError: The file cannot be read; it stays.
    """
    state = read_legacy(path)
    if state is None:
        return
    with database.writing(f"take over {path}") as connection:
        stored = load_state(connection).generation
        if stored == 0 < state.generation:
            numbered = tuple(
                msgspec.structs.replace(endpoint, generation=1) for endpoint in state.endpoints
            )
            save_state(
                connection,
                msgspec.structs.replace(state, endpoints=numbered),
                at=path.stat().st_mtime,
                reason=f"taken over from {path.name}",
                actor="",
                before=0,
            )
        elif stored != state.generation:
            extra = {"path": str(path), "generation": stored}
            _LOG.warning("an old state file is ignored: the database has a state", extra=extra)
            return
    move(path, path.with_name(f"{path.name}.imported"))
