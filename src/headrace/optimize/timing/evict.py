"""Drive out what the processor's caches hold, as a server's other models do between two calls."""

from pathlib import Path
from typing import Final

import numpy as np

_CACHES: Final = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS: Final = {"K": 1024, "M": 1024**2, "G": 1024**3}
_LINE_BYTES: Final = 64
_BEYOND: Final = 1.25
_UNKNOWN_BYTES: Final = 64 * 1024**2
_MOST_BYTES: Final = 512 * 1024**2


class Eviction:
    """Walks a buffer larger than the last cache; called before a call that shall find it cold.

    It writes a byte to each line of the buffer. The private caches of other cores keep what they
    hold, if the last cache does not include them: a model of several threads is less cold.
    """

    def __init__(self, size_bytes: int) -> None:
        self._lines = np.zeros(size_bytes, np.uint8)[::_LINE_BYTES]

    def __call__(self) -> None:
        """Take up to tens of milliseconds."""
        np.add(self._lines, 1, out=self._lines)

    @property
    def size_bytes(self) -> int:
        """How much is walked."""
        return self._lines.size * _LINE_BYTES


def eviction(caches: Path = _CACHES) -> Eviction:
    """One that fits this processor.

    A virtual machine may be told of a cache of hundreds of megabytes that it shares with others; no
    more than 512 MiB are walked.
    """
    largest = max((_size_bytes(path) for path in caches.glob("index*/size")), default=0)
    wanted = int(largest * _BEYOND) or _UNKNOWN_BYTES
    return Eviction(min(wanted, _MOST_BYTES))


def _size_bytes(path: Path) -> int:
    """Linux writes `307200K`."""
    try:
        text = path.read_text("ascii").strip()
        return int(text.rstrip("KMG")) * _UNITS.get(text[-1:], 1)
    except (OSError, ValueError):
        return 0
