"""What does a profile look like? Latency over load, and rows a second over the batch."""

# ruff: noqa: PLC0415  # matplotlib is an extra, and slow to import

from pathlib import Path

from headrace.optimize.profiling.document import Profile


def draw(path: Path, profile: Profile) -> None:
    """Two panels: what is predicted of one replica, and what was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.0, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    load, batch = figure.subplots(1, 2)
    curve = profile.prediction.curve
    rates = [point.rate for point in curve]
    for name, values in (
        ("p99", [point.p99_s for point in curve]),
        ("p95", [point.p95_s for point in curve]),
        ("p50", [point.p50_s for point in curve]),
    ):
        load.plot(rates, [value * 1e3 for value in values], marker="o", label=name)
    load.axvline(profile.prediction.capacity, linestyle=":", color="black", label="capacity")
    if profile.prediction.knee_rate is not None:
        load.axvline(profile.prediction.knee_rate, linestyle="--", color="grey", label="knee")
    load.set(xlabel="requests/s", ylabel="latency (ms)", yscale="log", title=profile.model)
    load.legend(fontsize="small")
    length = profile.measured.loaded.length
    cells = [cell for cell in profile.measured.cells if cell.length == length]
    for threads, runs in sorted({(cell.threads, cell.runs) for cell in cells}):
        line = sorted(
            (cell.rows, cell.rows_per_s)
            for cell in cells
            if (cell.threads, cell.runs) == (threads, runs)
        )
        label = f"{runs} at once, {threads} thread{'' if threads == 1 else 's'} each"
        batch.plot(*zip(*line, strict=True), marker="o", label=label)
    title = f"length {length}" if length else "measured"
    batch.set(xlabel="rows in a batch", ylabel="rows/s", title=title)
    batch.set_xscale("log", base=2)
    batch.legend(fontsize="small")
    figure.savefig(path, dpi=120)
