"""Progress of a load: one line, rewritten each second."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.core.text import duration_text
from headrace.load import Tick

_CLEAR = "\r\x1b[2K"


@contextmanager
def live() -> Iterator[Callable[[Tick], None] | None]:
    """What shows ticks on a terminal; None where nobody watches. The line is erased at the end.

    Plain text: what renders tables would hold up a thousand requests each time.
    """
    if not sys.stderr.isatty():
        yield None
        return
    try:
        yield _show
    finally:
        sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def _show(tick: Tick) -> None:
    sys.stderr.write(f"{_CLEAR}{line(tick)}")
    sys.stderr.flush()


def line(tick: Tick) -> str:
    """A tick in words."""
    left = f"{tick.left_s:.0f} s left" if tick.left_s > 0 else "waiting for answers"
    return (
        f"{tick.sent:,} sent, {tick.in_flight:,} in flight, "
        f"p50 {duration_text(tick.p50_s)}, p99 {duration_text(tick.p99_s)}, "
        f"{tick.failed:,} failed, lag {duration_text(tick.lag_p99_s)}, {left}"
    )
