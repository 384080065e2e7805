"""What engines over clusters have in common: patience, handlers of signals, errors in a line."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

BEGIN_S: Final = 300.0
"""For a worker, while none runs: a cluster that grows by need takes minutes for a machine."""
_MOST: Final = 400


@contextmanager
def own_signals() -> Iterator[None]:
    """Keep what SIGINT and SIGTERM do, whatever a library makes of them when it begins.

    Ray ends the process at a SIGTERM, and Spark has a handler of its own; a job ends tidily.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def one_line(error: BaseException) -> str:
    """What an error of a cluster says, without its traces."""
    lines = [line.strip() for line in str(error).splitlines()]
    text = " ".join(line for line in lines if line and not line.startswith(("at ", "File ")))
    return text[:_MOST] or type(error).__name__
