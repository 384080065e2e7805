"""The figures of `docs/explain/peers.md`, written between its markers, and its plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.peers import plots, suites, tables
from bench.peers.environments import ROOT
from bench.peers.models import TRIED
from bench.peers.rows import find
from bench.peers.running import HEADRACE
from bench.peers.store import Part, Run
from bench.peers.suites import goodput, latency, own, saturation

PAGE: Final = ROOT / "docs" / "explain" / "peers.md"
IMAGES: Final = ROOT / "docs" / "images" / "peers"
BEGIN: Final = "<!-- figures: written by `python -m bench.peers --page` -->"
END: Final = "<!-- end of figures -->"


class PageError(ValueError):
    """The page has no place for figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """One figure of one load, for all peers."""

    file: str
    title: str
    suite: str
    model: str
    load: str
    key: str
    scale: float = 1.0
    digits: int = 0


PLOTS: Final = (
    Plot(
        file="requests",
        title="Requests/s, a small network, JSON, 32 connections, one core",
        suite=saturation.SUITE,
        model="mlp",
        load=saturation.JSON,
        key="rps",
    ),
    Plot(
        file="p99",
        title="p99 in ms at half of the slower one's capacity, a small network",
        suite=latency.SUITE,
        model="mlp",
        load=latency.of_slower(latency.HALF),
        key="p99_s",
        scale=1e3,
        digits=2,
    ),
    Plot(
        file="goodput",
        title="Sentences/s with 99 % of the answers within 100 ms, MiniLM, one core",
        suite=goodput.SUITE,
        model="minilm",
        load=goodput.LOAD,
        key="goodput",
    ),
    Plot(
        file="memory",
        title="Idle memory in MiB, shared pages split among their users",
        suite=own.COST,
        model="mlp",
        load=own.COST_LOAD,
        key="idle_pss_mib",
    ),
    Plot(
        file="start",
        title="Seconds from start to first answer",
        suite=own.COST,
        model="mlp",
        load=own.COST_LOAD,
        key="first_answer_s",
        digits=2,
    ),
)


def write(run: Run, page: Path = PAGE, images: Path = IMAGES) -> Path:
    """Draw the plots and fill the page; the page.

    Raises:
        PageError: It lacks a marker.
    """
    drawn = draw(run, images)
    relative = "../images/peers"
    page.write_text(filled(page.read_text(), "\n\n".join(_sections(run, drawn, relative))))
    return page


def filled(page: str, figures: str) -> str:
    """The page with other figures between its markers.

    Raises:
        PageError: It lacks a marker.
    """
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        msg = f"the page has no place for figures: it needs the lines {BEGIN!r} and {END!r}"
        raise PageError(msg)
    return f"{before}{BEGIN}\n\n{figures.strip()}\n\n{END}{after}"


def draw(run: Run, folder: Path) -> Path:
    """Every plot for which there are figures; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        if bars := _bars(run.parts, plot):
            text = plots.svg(plot.title, bars, digits=plot.digits)
            (folder / f"{plot.file}.svg").write_text(text)
    return folder


def _bars(parts: Sequence[Part], plot: Plot) -> list[plots.Bars]:
    bars = []
    for part in parts:
        where = {"suite": plot.suite, "model": plot.model, "load": plot.load}
        theirs = find(part.rows, **where, server=part.name)
        ours = find(part.rows, **where, server=HEADRACE)
        if part.name != HEADRACE and theirs and ours:
            bars.append(
                plots.Bars(
                    label=part.title,
                    theirs=plot.scale * theirs.median(plot.key),
                    ours=plot.scale * ours.median(plot.key),
                )
            )
    return bars


def _sections(run: Run, images: Path, relative: str) -> Iterator[str]:
    yield _conditions(run)
    yield "### Targets\n\n" + _targets(run)
    peers = [part for part in run.parts if part.name != HEADRACE and not part.skipped]
    for suite in (*(one.name for one in suites.PAIRED), *suites.OWN):
        yield from _suite(peers, suite, images, relative)
    ours = [part for part in run.parts if part.name == HEADRACE]
    for part in ours:
        yield from _alone(part)
    yield "### Versions\n\n" + _versions(run.parts)


def _suite(peers: Sequence[Part], suite: str, images: Path, relative: str) -> Iterator[str]:
    found = list(tables.page_tables(peers, suite))
    if not found:
        return
    yield f"### {suite.capitalize()}\n\n{_question(suite)}"
    for plot in PLOTS:
        if plot.suite == suite and (images / f"{plot.file}.svg").exists():
            yield f"![{plot.title}]({relative}/{plot.file}.svg)"
    for heading, table in found:
        yield f"**{heading}**\n\n{table}"


def _question(suite: str) -> str:
    questions = {one.name: one.question for one in suites.PAIRED}
    return {**questions, **suites.OWN, **suites.ALONE}[suite]


def _alone(part: Part) -> Iterator[str]:
    asked = ""
    for (suite, model, load), rows in tables.grouped(part.rows).items():
        if suite not in suites.ALONE:
            continue
        if suite != asked:
            yield f"### {suite.capitalize()}\n\n{_question(suite)}"
            asked = suite
        columns = tables.COLUMNS[suite]
        lines = [[row.server, *[column.cell(row) for column in columns]] for row in rows]
        headings = ["", *[column.heading for column in columns]]
        yield f"**{model}, {load}**\n\n{tables.markdown(headings, lines)}"


def _conditions(run: Run) -> str:
    machine = run.machine
    kernel = str(machine["kernel"]).partition("-")[0]
    text = (
        f"Measured {run.started[:10]}: {machine['processor']}, {machine['cores']} cores, "
        f"{int(machine['memory_kb']) / 1e6:.0f} GB, Linux {kernel}, "
        f"Python {machine['python']}, revision `{str(machine['revision'])[:12]}`; "
        f"{run.build}; {run.placement}; load by {run.load_tool}."
    )
    lines = [text]
    noisy = sum(row.noisy for part in run.parts for row in part.rows)
    if run.is_quick:
        lines.append("**A short run: one window each, so these figures are rough.**")
    if noisy:
        lines.append(f"{noisy} windows had foreign load.")
    lines += [f"{line}." for line in _batches(run.parts)]
    left_out = [f"{part.title}: {part.skipped}" for part in run.parts if part.skipped]
    left_out += [
        f"{part.title}, {step}: {why.splitlines()[0]}"
        for part in run.parts
        for step, why in part.failures.items()
    ]
    return "\n\n".join([" ".join(lines), *[f"Not measured: {line}" for line in left_out]])


def _batches(parts: Sequence[Part]) -> Iterator[str]:
    for model, sizes in TRIED.items():
        chosen = [f"{part.title} {part.batches[model]}" for part in parts if model in part.batches]
        if chosen:
            tried = " and ".join(map(str, sizes))
            yield f"Largest batch with {model}, the better of {tried}: {', '.join(chosen)}"


def measured(value: float, limit: float) -> str:
    """`value` with three digits, or as many as tell it from `limit`."""
    texts = [f"{value:.{digits}g}" for digits in range(3, 7)]
    return next((text for text in texts if float(text) != limit), texts[0])


def _targets(run: Run) -> str:
    rows = [
        [
            target["text"],
            f"{measured(target['value'], target['limit'])} {target['unit']}".strip(),
            f"{target['bound']} {target['limit']:g}",
            "met" if target["met"] else "**missed**",
        ]
        for target in run.targets
    ]
    return tables.markdown(["target", "measured", "required", ""], rows)


def _versions(parts: Sequence[Part]) -> str:
    rows = [
        [part.title, ", ".join(f"{name} {version}" for name, version in part.versions.items())]
        for part in parts
        if part.versions
    ]
    return tables.markdown(["server", "pinned"], rows)
