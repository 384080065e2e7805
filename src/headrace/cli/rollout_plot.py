"""What does a simulation look like? A drawing of when runs were decided; needs matplotlib."""

# ruff: noqa: PLC0415  # matplotlib is an extra, and slow to import

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.core.errors import FailedPreconditionError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.rollout.simulate import Result


def require_matplotlib() -> None:
    """Fail before the work is done, not after it.

    Raises:
        FailedPreconditionError: matplotlib is not installed.
    """
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        msg = "--plot needs matplotlib; install it with: pip install 'headrace[plot]'"
        raise FailedPreconditionError(msg)


def draw(path: Path, results: "Sequence[Result]", *, alpha: float, duration_s: int) -> None:
    """The share of the runs that were decided by each second, one panel for each candidate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(len(results), 2)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(7.0 * columns, 3.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, result in enumerate(results):
        axes = figure.add_subplot(rows, columns, i + 1)
        for times, label, colour in (
            (result.promoted_s, "promoted", "tab:green"),
            (result.rolled_back_s, "rolled back", "tab:red"),
            (result.naive_s, "z test of errors, read as often", "tab:gray"),
        ):
            shares = [rank / result.runs for rank in range(1, len(times) + 1)]
            last = shares[-1] if shares else 0.0
            axes.step(
                [0.0, *times, duration_s],
                [0.0, *shares, last],
                where="post",
                label=label,
                color=colour,
            )
        axes.axhline(alpha, linestyle=":", color="black", linewidth=1.0, label=f"alpha {alpha:g}")
        axes.set(
            title=result.candidate,
            xlabel="seconds watched",
            ylabel="share of runs",
            xlim=(0, duration_s),
            ylim=(0, 1.02),
        )
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    figure.savefig(path, dpi=120)
