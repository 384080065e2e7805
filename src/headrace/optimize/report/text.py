"""The result at a terminal: a table with intervals, what was rejected and why, some words."""

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from headrace.core.text import NOTHING, bytes_text, number_text
from headrace.optimize.report import words
from headrace.optimize.report.data import CandidateReport, OptimizeReport

WIDTH: Final = 100
_LEAST_NAME: Final = 12
_CHOSEN: Final = "▸ "
_PLAIN: Final = str.maketrans({"▸": ">", "µ": "u", "…": "~"})


def text_report(report: OptimizeReport, *, encoding: str | None = "utf-8") -> str:
    """The result as lines of at most 100 columns, in letters that `encoding` has.

    Control characters in names and errors are shown, not sent to the terminal.
    """
    lines = [
        *_wrapped(f"{report.model} ({report.model_class}), {_where(report)}"),
        "",
        *_candidates(report),
        "",
        *_before_and_after(report),
        *_rejected(report),
    ]
    for paragraph in (words.gain(report), words.price(report), words.unproved(report)):
        said = " ".join(paragraph)
        lines += ["", *_wrapped(said)] if said else []
    text = "\n".join(lines)
    try:
        text.encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return text.translate(_PLAIN).encode("ascii", "backslashreplace").decode()
    return text


def _where(report: OptimizeReport) -> str:
    processor = report.processor.name or "an unknown processor"
    return f"{words.conditions(report.settings)}, on {processor}"


def _candidates(report: OptimizeReport) -> Iterator[str]:
    data = report.data
    labelled = data.is_labelled
    is_priced = report.settings.target == "cost" and report.baseline.cost_per_million is not None
    first = "per million" if is_priced else "p50"
    head = ["", "candidate", first, "less time", words.quality_head(data)]
    rows = [[*head, "loss, points" if words.in_percent(data) else "loss"][: 6 if labelled else 5]]
    for one in report.accepted():
        is_baseline = one.name == report.baseline.name
        cut = "baseline" if is_baseline else words.percent(one.cut_ratio, one.cut_ci_ratio)
        mark = _CHOSEN if one.name == report.chosen.name else ""
        figure = words.seconds(one.p50_s, one.p50_ci_s)
        figure = number_text(one.cost_per_million) if is_priced else figure
        lost = NOTHING if is_baseline else words.loss(one, data)
        row = [mark, words.printable(one.name), figure, cut, words.quality(one, data), lost]
        rows.append(row[: len(rows[0])])
    yield from _table(rows)


def _before_and_after(report: OptimizeReport) -> Iterator[str]:
    before, after = report.baseline, report.chosen
    pairs = [
        ("p99", words.seconds(before.p99_s), words.seconds(after.p99_s)),
        ("p50, cold caches", words.seconds(before.cold_p50_s), words.seconds(after.cold_p50_s)),
        (
            words.callers(report.settings),
            words.rate(before.throughput_per_s),
            words.rate(after.throughput_per_s),
        ),
        ("files", bytes_text(before.size_bytes), bytes_text(after.size_bytes)),
        ("memory", bytes_text(before.memory_bytes), bytes_text(after.memory_bytes)),
        ("time to load", words.seconds(before.load_s), words.seconds(after.load_s)),
        (
            "cost per million",
            number_text(before.cost_per_million),
            number_text(after.cost_per_million),
        ),
    ]
    known = [pair for pair in pairs if pair[1:] != (NOTHING, NOTHING)]
    if known and report.is_changed:
        yield from _table([("", "", "baseline", "chosen"), *(("", *pair) for pair in known)])


def _rejected(report: OptimizeReport) -> Iterator[str]:
    if not report.rejected:
        return
    yield ""
    yield "rejected"
    # Of many nothing was measured, and few reasons are behind that.
    lines: dict[str, list[str]] = {}
    for one in report.rejected:
        said = f"{_figures(one, report)}{one.reason or 'no reason is known'}"
        lines.setdefault(said, []).append(one.name)
    for said, names in lines.items():
        yield from textwrap.wrap(
            words.printable(f"{', '.join(names)}: {said}"),
            WIDTH,
            initial_indent="  ",
            subsequent_indent="    ",
        )


def _figures(one: CandidateReport, report: OptimizeReport) -> str:
    """What was measured of a rejected candidate, in short."""
    known = [
        (one.p50_s, words.seconds(one.p50_s)),
        (one.cut_ratio, words.less(one.cut_ratio or 0.0)),
        (
            one.accuracy if report.data.is_labelled else one.agreement_ratio,
            f"{words.quality_head(report.data)} {words.quality(one, report.data)}",
        ),
    ]
    said = [text for value, text in known if value is not None]
    return f"{', '.join(said)}; " if said else ""


def _table(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Rows below each other: a mark, a name that is cut where there is no room, figures."""
    names, *figures = ([max(map(len, column)) for column in zip(*rows, strict=True)])[1:]
    names = min(names, max(WIDTH - len(_CHOSEN) - sum(figures) - 2 * len(figures), _LEAST_NAME))
    for mark, name, *rest in rows:
        cells = [name if len(name) <= names else f"{name[: names - 1]}…", *rest]
        row = (f"{cell:<{width}}" for cell, width in zip(cells, [names, *figures], strict=True))
        yield f"{mark:<{len(_CHOSEN)}}{'  '.join(row)}".rstrip()


def _wrapped(text: str) -> Iterable[str]:
    return textwrap.wrap(words.printable(text), WIDTH)
