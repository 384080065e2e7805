"""What may a gateway say of itself? Whoever has its certificate must not harm others. Pure.

A report is added to what all gateways counted, shown to people and kept: a number that no gateway
can have, or a text without end, would spoil that for everybody.
"""

from typing import Final
from urllib.parse import urlsplit

import msgspec

from headrace.control.agents.messages import Report
from headrace.core import InvalidArgumentError

_MOST_NAME: Final = 512
_MOST_TEXT: Final = 2000
_MOST_VERSION: Final = 100
_MOST_AT_ONCE: Final = 1 << 31


def checked_report(report: Report) -> Report:
    """`report`, with its texts cut to what people read.

    Raises:
        InvalidArgumentError: It says what cannot be.
    """
    if len(report.name) > _MOST_NAME or not report.name.isprintable():
        raise InvalidArgumentError(
            f"a gateway's name has at most {_MOST_NAME} characters, all of them printable"
        )
    counts = report.counts
    if counts is not None:
        for active in counts.active:
            _check_number(f"requests in flight to '{active.endpoint[:100]}'", active.requests)
    for endpoint, held in report.held.items():
        _check_number(f"requests held for '{endpoint[:100]}'", held)
    return msgspec.structs.replace(
        report,
        agent=report.agent[:_MOST_VERSION],
        instance=report.instance[:_MOST_VERSION],
        in_force=report.in_force[:_MOST_VERSION],
        refused=report.refused[:_MOST_VERSION],
        reason=report.reason[:_MOST_TEXT],
        problem=report.problem[:_MOST_TEXT],
        url=report.url if _is_web(report.url) else "",
        restarts=max(report.restarts, 0),
    )


def _check_number(what: str, number: int) -> None:
    if not 0 <= number < _MOST_AT_ONCE:
        raise InvalidArgumentError(f"there cannot be {str(number)[:40]} {what}")


def _is_web(url: str) -> bool:
    """Whether people may be given it to follow."""
    try:
        return len(url) <= _MOST_TEXT and urlsplit(url).scheme in {"http", "https"}
    except ValueError:
        return False
