"""How are simulated rollouts shown? Documents for programs, tables with bars for people."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from typing import TYPE_CHECKING, Final

from headrace.core.text import duration_text

if TYPE_CHECKING:
    from rich.text import Text

    from headrace.rollout.simulate import Power, Result

_BAR: Final = 20
_NARROW: Final = 10


def result_document(result: "Result", *, is_same: bool) -> dict[str, object]:
    """One candidate, for programs. `is_same`: every decision against it was false."""
    found: dict[str, object] = {
        "candidate": result.candidate,
        "rolled_back_ratio": result.rolled_back,
        "promoted_ratio": result.promoted,
        "undecided_ratio": result.undecided,
        "median_s": result.median_s,
        "rolled_back_by": result.by_metric,
        "ever_rolled_back_ratio": len(result.ever_rolled_back_s) / result.runs,
        "naive_ever_rejected_ratio": len(result.naive_s) / result.runs,
        "naive_fixed_horizon_ratio": result.naive_at_the_end / result.runs,
    }
    if is_same:
        found["false_decision_ratio"] = found["ever_rolled_back_ratio"]
        found["naive_false_decision_ratio"] = found["naive_ever_rejected_ratio"]
    return found


def power_document(row: "Power") -> dict[str, object]:
    """One row of the power table, for programs."""
    return {
        "change": row.change,
        "metric": row.expected.metric,
        "expected_requests_until_worse": row.expected.until_worse,
        "expected_requests_until_tolerated": row.expected.until_tolerated,
        "expected_s": row.expected_s,
        **result_document(row.result, is_same=False),
    }


def result_text(result: "Result", *, alpha: float, is_same: bool) -> "list[Text]":
    """One candidate, for people."""
    from rich.text import Text

    from headrace.cli.output import table

    ever, naive = (
        len(times) / result.runs for times in (result.ever_rolled_back_s, result.naive_s)
    )
    rows = [
        ("promoted", _bar_of(result.promoted, "green")),
        ("rolled back", _bar_of(result.rolled_back, "red")),
        ("not decided in time", _bar_of(result.undecided, "yellow")),
        ("half decided after", Text(duration_text(result.median_s))),
    ]
    if is_same:
        rows = [
            *rows,
            (f"false decisions, at most {100 * alpha:g} % are allowed", _bar_of(ever, "red")),
            ("a z test of the errors read at every second", _bar_of(naive, "red")),
            (
                "the same z test read once, at the end",
                _bar_of(result.naive_at_the_end / result.runs, "red"),
            ),
        ]
    first = f"{result.runs:,} rollouts of a version that is: {result.candidate}"
    return [Text(first, style="bold"), table(rows)]


def power_text(rows: "list[Power]", duration_s: int) -> "list[Text]":
    """The power table, for people."""
    from rich.text import Text

    from headrace.cli.output import table

    cells = [
        (
            row.change,
            _number(row.expected.until_worse),
            _number(row.expected.until_tolerated),
            duration_text(row.expected_s),
            duration_text(row.result.median_s),
            _bar_of(row.result.rolled_back, "red", width=_NARROW),
            _bar_of(row.result.promoted, "green", width=_NARROW),
        )
        for row in rows
    ]
    names = ("change", "requests to see worse", "to see tolerated", "expected", "half decided")
    note = (
        f"expected: for the changed metric alone, in requests to both versions and at this rate; "
        f"simulated: the last three columns, within {duration_s:,} s"
    )
    return [table(cells, *names, "rolled back", "promoted"), Text(note, style="dim")]


def _bar_of(ratio: float, style: str, *, width: int = _BAR) -> "Text":
    from rich.text import Text

    full = round(width * ratio)
    return Text.assemble(
        ("█" * full, style), ("░" * (width - full), "dim"), f" {100 * ratio:5.1f} %"
    )


def _number(requests: float | None) -> str:
    return "never" if requests is None else f"{float(f'{requests:.2g}'):,.0f}"
