"""What became of the rows of a file: written, older than what stood there, or refused."""

from contextlib import ExitStack
from pathlib import Path
from typing import Final

import msgspec

from headrace.cli.read_rows import Row, opened, read_rows
from headrace.features import FeatureView, OnlineStore, push_rows, refusals

_TOLD: Final = 20


class RefusedRow(msgspec.Struct, frozen=True):
    """One that was not written, by its number from 1, not counting names and empty lines."""

    row: int
    why: str


class PushReport(msgspec.Struct, frozen=True, kw_only=True):
    """`refused` has the first of them."""

    view: str
    rows: int
    written: int
    older: int
    refused_rows: int
    refused: list[RefusedRow]


def push_file(view: FeatureView, store: OnlineStore, path: Path) -> PushReport:
    """Write the rows of a file, or of standard input (`-`), that are right.

    Raises:
        InvalidArgumentError: The file cannot be read on; what came before is written.
        UnavailableError: The store cannot be reached.
        FailedPreconditionError: It cannot be written; the message says how to mend it.
    """
    rows = written = right = refused_rows = 0
    refused: list[RefusedRow] = []
    with ExitStack() as stack:
        stream = opened(path)
        if str(path) != "-":
            stack.enter_context(stream)
        for part in read_rows(stream, str(path), view):
            wrong = [(number, row) for number, row in part if isinstance(row, str)]
            good: list[tuple[int, Row]] = [
                (number, row) for number, row in part if not isinstance(row, str)
            ]
            found = refusals(view, [row for _, row in good])
            wrong += [(good[i][0], why) for i, why in found.items()]
            fit = [row for i, (_, row) in enumerate(good) if i not in found]
            written += push_rows(view, store, fit)
            rows += len(part)
            right += len(fit)
            refused_rows += len(wrong)
            refused += [RefusedRow(number, why) for number, why in sorted(wrong)]
            del refused[_TOLD:]
    return PushReport(
        view=view.name,
        rows=rows,
        written=written,
        older=right - written,
        refused_rows=refused_rows,
        refused=refused,
    )
