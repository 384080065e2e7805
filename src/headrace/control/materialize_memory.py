"""What became of earlier runs of feature views, over restarts? One file; a loss costs a run."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.materialize_plan import ViewPast
from headrace.core.files import make_private_dir, write_atomic

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class MaterializeMemory:
    """Keeps what became of runs at `path`; None forgets it."""

    path: Path | None

    def read(self) -> dict[str, ViewPast]:
        """By view; nothing if there is no such file, or none that can be read."""
        if self.path is None:
            return {}
        try:
            kept = msgspec.json.decode(self.path.read_bytes(), type=list[ViewPast])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.MsgspecError) as error:
            _LOG.warning("cannot read what was materialized", extra={"error": str(error)})
            return {}
        return {past.view: past for past in kept}

    def write(self, pasts: Iterable[ViewPast]) -> None:
        """Keep these; a full disk is no reason to stop."""
        if self.path is None:
            return
        try:
            make_private_dir(self.path.parent)
            write_atomic(self.path, msgspec.json.encode(list(pasts)), durable=False)
        except OSError as error:
            _LOG.warning("cannot keep what was materialized", extra={"error": str(error)})
