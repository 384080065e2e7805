"""Why does nothing come or go at the moment? For people; empty if all is well."""

from typing import Final

from headrace.streaming.broker import Session
from headrace.streaming.pump import Pump

SLOW_AFTER_S: Final = 60.0
"""For so long the model may have the same records before it is told: an endpoint has given up."""


def trouble_of(session: Session, pump: Pump, now: float) -> str:
    """What stands in the way: the broker, what scores, or the states of windows.

    Args:
        now: Monotonic time.
    """
    if session.trouble:
        return session.trouble
    if pump.ledger.waiting():
        return pump.last_error
    slow = _slow(pump, now)
    return slow or ("" if pump.windows is None else pump.windows.trouble)


def _slow(pump: Pump, now: float) -> str:
    oldest = pump.oldest_run()
    if oldest is None:
        return ""
    batch, since = oldest
    if now - since < SLOW_AFTER_S:
        return ""
    first, count = batch.records[0], len(batch.records)
    topic, partition = first.place
    return (
        f"the model has had {count} record{'s' if count > 1 else ''} for {now - since:.0f} s, "
        f"the first is {first.offset} of {topic}, partition {partition}; nothing is wrong if it "
        "takes so long, else stop the stream and look at them"
    )
