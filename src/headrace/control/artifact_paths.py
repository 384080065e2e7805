"""Which artifact of which home lies at a path? Told by the path alone, as homes differ."""

import re
from dataclasses import dataclass
from typing import Final

from headrace.core import Digest

LAYOUT: Final = r"/artifacts/sha256/([0-9a-f]{64})/"
"""What stands between a home and the name of a stored file or directory."""
_STORED: Final = re.compile(rf"(/.*)?{LAYOUT}([^/]+)", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactPath:
    """Where an artifact is. `filename`: the file or directory in it that a runtime loads.

    `home`: empty for the root of the file system.
    """

    home: str
    digest: Digest
    filename: str


def artifact_at(path: str) -> ArtifactPath | None:
    """The artifact at `path`; None if that is in no home's artifacts."""
    found = _STORED.fullmatch(path)
    if found is None:
        return None
    return ArtifactPath(home=found[1] or "", digest=Digest(f"sha256:{found[2]}"), filename=found[3])
