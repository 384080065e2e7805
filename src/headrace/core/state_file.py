"""State in a JSON file that survives a restart."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, TypeVar

import msgspec

from headrace.core.error_kind import UNDECODABLE, error_kind
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.state")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StateFile(Generic[T]):
    """File with one value. Every method blocks."""

    path: Path | None
    """None stores nothing."""
    schema: type[T]
    """What msgspec decodes the content as."""
    what: str
    """Description of the value, for the log."""
    durable: bool = False
    """Whether a saved value survives a loss of power."""

    def load(self) -> T | None:
        """Return the stored value; None if it is missing, or its file is damaged, which is logged.

        The log contains the kind of damage and no content.
        """
        if self.path is None:
            return None
        try:
            return msgspec.json.decode(self.path.read_bytes(), type=self.schema)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, *UNDECODABLE) as error:
            extra = {"path": str(self.path), "error": error_kind(error)}
            _LOG.warning("cannot read %s", self.what, extra=extra)
            return None

    def save(self, value: T) -> None:
        """Replace the stored value.

        Raises:
            OSError: The disk is full or cannot be written; the file is as it was.
        """
        if self.path is not None:
            write_atomic(self.path, msgspec.json.encode(value), durable=self.durable)

    def try_save(self, value: T) -> None:
        """Replace the stored value; log a write error instead of raising it."""
        try:
            self.save(value)
        except OSError as error:
            extra = {"path": str(self.path), "error": str(error)}
            _LOG.warning("cannot write %s", self.what, extra=extra)
