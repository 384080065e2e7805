"""`headrace autoscale`: what the autoscaler would do to a load."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headrace.cli.options import Json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.text import Text

    from headrace.autoscale.simulate import Outcome

app = typer.Typer(no_args_is_help=True, help="See what the autoscaler would do to a load.")

_PLOT_SIZE = (10.0, 3.0)


class TraceName(StrEnum):
    """Loads that are known to give trouble."""

    ALL = "all"
    STEADY = "steady"
    FLASH_CROWD = "flash-crowd"
    DIURNAL = "diurnal"
    ON_OFF = "on-off"
    LOST_METRICS = "lost-metrics"
    SLOW_START = "slow-start"


@app.callback()
def root() -> None:
    """See what the autoscaler would do to a load."""


@app.command()
def simulate(
    *,
    trace: Annotated[TraceName, typer.Option("--trace", help="Which load.")] = TraceName.ALL,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another one, other requests.")] = 0,
    min_replicas: Annotated[
        int | None, typer.Option("--min-replicas", min=1, max=16, show_default="1")
    ] = None,
    stable_window_s: Annotated[
        float | None, typer.Option("--stable-window-s", min=1.0, show_default="60")
    ] = None,
    panic_window_s: Annotated[
        float | None, typer.Option("--panic-window-s", min=1.0, show_default="6")
    ] = None,
    panic_ratio: Annotated[
        float | None, typer.Option("--panic-ratio", min=1.0, show_default="1.1")
    ] = None,
    scale_down_delay_s: Annotated[
        float | None, typer.Option("--scale-down-delay-s", min=0.0, show_default="120")
    ] = None,
    target_in_flight: Annotated[
        float | None, typer.Option("--target-in-flight", min=0.01, show_default="by the SLO")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            help="Draw copies over time into this file: .png, .svg or .pdf.",
            dir_okay=False,
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Run made-up loads against the autoscaler, a perfect oracle, fixed sizes and a CPU target.

    Each load is a queueing model with seeded chance: nothing runs for real. A violation is a
    request that was answered later than the SLO, or refused. --json adds the count of every second.

    For example:

        headrace autoscale simulate --trace flash-crowd

        headrace autoscale simulate --scale-down-delay-s 300 --plot scaling.png
    """
    import msgspec

    from headrace.autoscale.simulate import simulate as run
    from headrace.autoscale.traces import TRACES
    from headrace.cli.output import progress, show, write_json
    from headrace.core.autoscale_settings import AutoscaleSettings

    if plot is not None:
        _check_plot(plot)
    given = {
        "min_replicas": min_replicas,
        "stable_window_s": stable_window_s,
        "panic_window_s": panic_window_s,
        "panic_ratio": panic_ratio,
        "scale_down_delay_s": scale_down_delay_s,
        "target_in_flight": target_in_flight,
    }
    settings = msgspec.structs.replace(
        AutoscaleSettings(),
        **{name: value for name, value in given.items() if value is not None},
    )
    if settings.panic_window_s > settings.stable_window_s:
        msg = f"is above the stable window of {settings.stable_window_s:g} s"
        raise typer.BadParameter(msg, param_hint="--panic-window-s")
    names = list(TRACES) if trace is TraceName.ALL else [trace.value]
    outcomes: list[Outcome] = []
    for name in names:
        with progress(f"simulating {name}"):
            outcomes += run(TRACES[name](), settings, seed=seed)
    if plot is not None:
        _draw(outcomes, plot)
    if json:
        write_json({"seed": seed, "settings": settings, "outcomes": outcomes})
    else:
        show(_table(outcomes))


def _table(outcomes: "Sequence[Outcome]") -> "Text":
    from headrace.cli.output import table

    rows = [
        (
            outcome.trace,
            outcome.policy,
            f"{outcome.violation_ratio:.2%}",
            f"{outcome.refused_ratio:.2%}",
            f"{outcome.p99_s:.3f} s",
            f"{outcome.replica_hours:.2f}",
            str(outcome.max_replicas),
            str(outcome.changes),
            str(outcome.direction_changes),
        )
        for outcome in outcomes
    ]
    return table(
        rows, "trace", "policy", "violations", "refused", "p99", "hours", "most", "changes", "turns"
    )


def _check_plot(path: Path) -> None:
    from headrace.cli.rollout_plot import require_matplotlib

    if path.suffix not in {".png", ".svg", ".pdf"}:
        msg = f"'{path}' ends in neither .png, .svg nor .pdf"
        raise typer.BadParameter(msg, param_hint="--plot")
    require_matplotlib()


def _draw(outcomes: "Sequence[Outcome]", path: Path) -> None:
    from matplotlib.figure import Figure

    from headrace.autoscale.traces import TRACES

    names = list(dict.fromkeys(outcome.trace for outcome in outcomes))
    figure = Figure(figsize=(_PLOT_SIZE[0], _PLOT_SIZE[1] * len(names)), layout="constrained")
    rows = figure.subplots(len(names), squeeze=False)[:, 0]
    for axes, name in zip(rows, names, strict=True):
        trace = TRACES[name]()
        axes.fill_between(
            range(trace.seconds), trace.rates * trace.service_s, color="0.9", label="busy copies"
        )
        for index, (begin, end) in enumerate(trace.lost):
            label = "" if index else "no metrics"  # named once in the legend
            axes.axvspan(begin, end, color="mistyrose", label=label)
        for outcome in (o for o in outcomes if o.trace == name):
            late = f"{outcome.violation_ratio:.1%} late, {outcome.replica_hours:.1f} h"
            label = f"{outcome.policy}: {late}"
            axes.step(range(len(outcome.replicas)), outcome.replicas, where="post", label=label)
        axes.set_title(f"{name}: {trace.about}", fontsize="medium", loc="left")
        axes.set_ylabel("copies")
        axes.legend(fontsize="x-small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    rows[-1].set_xlabel("seconds")
    figure.savefig(path)
