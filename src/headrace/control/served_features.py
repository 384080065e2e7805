"""Keeps what features replicas served, in the home, for whoever looks for skew."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headrace.features import ServedFile

_LOG = logging.getLogger("headrace.control")


class ServedFeaturesKeeper:
    """Writes into a directory for each service, of bounded size. For one thread at a time."""

    def __init__(self, home: Path) -> None:
        self.written = 0
        self.dropped = 0
        self._home = home
        self._files: dict[str, ServedFile] = {}

    def append(self, service: str, lines: Sequence[str]) -> None:
        """Keep lines; what the disk does not take is dropped and counted."""
        from headrace.features import ServedFile, served_directory  # noqa: PLC0415  # few need it

        if service not in self._files:
            self._files[service] = ServedFile(served_directory(self._home, service))
        try:
            self._files[service].append("".join(f"{line}\n" for line in lines).encode())
        except OSError as error:
            if not self.dropped:
                extra = {"service": service, "error": str(error)}
                _LOG.error("cannot keep served features", extra=extra)
            self.dropped += len(lines)
        else:
            self.written += len(lines)
