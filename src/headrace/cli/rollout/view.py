"""Rollouts as text: state, arms, intervals."""

import sys
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING, Any, Final

from rich.console import Group
from rich.text import Text

from headrace.cli.base.output import Column, rows_text, table
from headrace.core import span
from headrace.core.text import bound_text, effect_text, metric_text

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Characters of the drawing; later ones hide earlier ones."""

    empty: str
    line: str
    neutral: str
    margin: str
    effect: str
    left: str
    right: str


UNICODE: Final = Marks(
    empty=" ", line="━", neutral="│", margin="┊", effect="●", left="◀", right="▶"
)
ASCII: Final = Marks(empty=" ", line="-", neutral="|", margin=":", effect="o", left="<", right=">")


def marks_for(encoding: str | None) -> Marks:
    """Return the characters that a terminal of this encoding can show."""
    try:
        "".join(astuple(UNICODE)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def interval_bar(
    *,
    low: float | None,
    high: float | None,
    effect: float | None,
    neutral: float,
    margin: float | None,
    marks: Marks = UNICODE,
    width: int = WIDTH,
) -> str:
    """Draw the interval `[low, high]` on a scale that includes `neutral` and `margin`.

    Args:
        low: None for an interval without lower bound; then it is drawn to the left edge.
        neutral: Value without difference.
        margin: Limit of the tolerated difference; None for no limit.
    """
    if low is None and high is None:
        return ""
    points = [x for x in (low, high, effect, neutral, margin) if x is not None]
    padding = (max(points) - min(points)) * 0.08 or 1.0
    start = min(points) - padding
    per_cell = (max(points) - min(points) + 2 * padding) / width

    def cell(value: float) -> int:
        return min(max(int((value - start) / per_cell), 0), width - 1)

    cells = [marks.empty] * width
    first = 0 if low is None else cell(low)
    last = width - 1 if high is None else cell(high)
    for i in range(first, last + 1):
        cells[i] = marks.line
    cells[cell(neutral)] = marks.neutral
    if margin is not None:
        cells[cell(margin)] = marks.margin
    if effect is not None:
        cells[cell(effect)] = marks.effect
    if low is None:
        cells[0] = marks.left
    if high is None:
        cells[-1] = marks.right
    return "".join(cells)


Document = dict[str, Any]
_STYLES: Final = {
    "promote": "green",
    "promoted": "green",
    "roll_back": "red",
    "rolled_back": "red",
    "aborted": "red",
    "paused": "yellow",
}


def render(status: Document, *, now: float) -> "RenderableType":
    """Return the complete view of one rollout.

    Args:
        now: Seconds since 1970.
    """
    parts: list[RenderableType] = [headline(status, now=now)]
    if not status["over"]:
        parts += [Text(note, style="dim") for note in status["notes"]]
    parts += [Text(), _arms(status)]
    verdict = status.get("verdict")
    metrics = verdict["metrics"] if verdict else []
    if metrics:
        marks = marks_for(sys.stdout.encoding)
        parts += [Text(), rows_text(metrics, _metric_columns(marks))]
        parts.append(Text(f"{marks.neutral} no difference  {marks.margin} tolerated", style="dim"))
    if verdict and verdict["explanation"]:
        parts += [Text(), Text(verdict["explanation"])]
    return Group(*parts)


def headline(status: Document, *, now: float) -> "Text":
    """Return the rollout's subject and state, in one or two lines."""
    phase = status["phase"].replace("_", " ")
    text = Text.assemble(
        (f"rollout {status['id']}", "bold"),
        f" of {status['endpoint']}: {status['strategy']}, ",
        (phase, _STYLES.get(status["phase"], "cyan")),
        progress_of(status),
        f" after {span(status['duration_s'])}" if status["over"] else "",
        f", {span(now - status['since'])}{' ago' if status['over'] else ''}",
    )
    if status["reason"]:
        text.append(f"\n{status['reason']}")
    if status.get("problem"):
        text.append(f"\n{status['problem']}", style="red")
    return text


def progress_of(status: Document) -> str:
    """Return the current step and its weight: `, step 2 of 3 (25 %)`."""
    steps = status["steps"]
    if status["over"]:
        return ""
    if steps:
        return (
            f", step {min(status['step'] + 1, len(steps))} of {len(steps)} ({status['weight']} %)"
        )
    if status["mirror_percent"]:
        return f", mirroring {status['mirror_percent']} %"
    return f", {status['weight']} %"


def summary_columns(now: float) -> dict[str, Column]:
    """Return the columns of a list of rollouts."""
    return {
        "id": "id",
        "endpoint": "endpoint",
        "strategy": "strategy",
        "phase": lambda status: Text(
            status["phase"].replace("_", " "), style=_STYLES.get(status["phase"], "")
        ),
        "version": lambda status: f"{status['from_version']} to {status['to_version']}",
        "weight": lambda status: f"{status['weight']}%",
        "age": lambda status: span(now - status["began"]),
        "by": "actor",
        "why": lambda status: status["reason"].partition("\n")[0],
    }


def _arms(status: Document) -> "Text":
    requests = status["requests"]
    new, fresh = status["weight"], status["baseline_weight"]
    rows = [
        ("old", status["from_version"], status["from_model"], f"{100 - new - fresh}%", ""),
        ("new", status["to_version"], status["to_model"], f"{new}%", ""),
    ]
    if fresh:
        rows.insert(1, ("baseline", status["from_version"], status["from_model"], f"{fresh}%", ""))
    compared = {1 if fresh else 0: requests["baseline"], len(rows) - 1: requests["candidate"]}
    return table(
        [(*row[:-1], f"{compared[i]:,}" if i in compared else "") for i, row in enumerate(rows)],
        *("arm", "version", "model", "weight", "requests compared"),
    )


def _metric_columns(marks: Marks) -> dict[str, Column]:
    def bar(metric: Document) -> str:
        unit, margin = metric["unit"], metric["margin"]
        # Higher rewards are better, so the tolerance is below; for all other metrics it is above.
        tolerated = -margin if unit == "reward" and margin is not None else margin
        return interval_bar(
            low=metric["low"],
            high=metric["high"],
            effect=metric["effect"],
            neutral=1.0 if unit == "times" else 0.0,
            margin=tolerated,
            marks=marks,
        )

    def bounds(metric: Document) -> str:
        low, high = (bound_text(metric[side], metric["unit"]) for side in ("low", "high"))
        return f"{low} to {high}"

    return {
        "metric": "metric",
        "verdict": lambda metric: Text(
            metric["outcome"].replace("_", " "), style=_STYLES.get(metric["outcome"], "dim")
        ),
        "old": lambda metric: metric_text(metric["baseline"], metric["unit"]),
        "new": lambda metric: metric_text(metric["candidate"], metric["unit"]),
        "effect": lambda metric: effect_text(metric["effect"], metric["unit"]),
        "interval": bar,
        "": bounds,
        "tolerated": lambda metric: effect_text(metric["margin"], metric["unit"]),
        "samples": lambda metric: " / ".join(f"{count:,}" for count in metric["samples"]),
    }
