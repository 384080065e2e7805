"""Progress of a transfer: a line on standard error, if it takes more than two seconds."""

import sys
import time
from typing import Final, TextIO

from headrace.core.text import bytes_text

AFTER_S: Final = 2.0
_EACH_S: Final = 0.2
_EACH_IN_A_LOG_S: Final = 10.0


class TransferView:
    """Shows transfers one after the other; a terminal sees a line that changes, a log a few.

    Args:
        stream: None for standard error.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self._what = ""
        self._began = 0.0
        self._shown: float | None = None

    def tell(self, what: str, done: int, total: int, *, now: float | None = None) -> None:
        """Show it if it is time.

        Args:
            now: Monotonic; None for now.
        """
        now = time.monotonic() if now is None else now
        if what != self._what:
            self._what, self._began, self._shown = what, now, None
        is_live = self._stream.isatty()
        each = _EACH_S if is_live else _EACH_IN_A_LOG_S
        is_last = done >= total and self._shown is not None
        is_due = now - self._began >= AFTER_S and (self._shown is None or now - self._shown >= each)
        if not is_last and not is_due:
            return
        rate = done / max(now - self._began, 0.001)
        text = f"{what}: {bytes_text(done)} of {bytes_text(total)}, {bytes_text(rate)}/s"
        if is_live:
            self._stream.write(f"\r\x1b[K{text}" + ("\n" if is_last else ""))
        else:
            self._stream.write(f"{text}\n")
        self._stream.flush()
        self._shown = None if is_last else now
