"""What people see while `headrace optimize` searches: the step, the time left, each result."""

# ruff: noqa: PLC0415  # rich is loaded where somebody watches

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from headrace.cli.output import say
from headrace.optimize.accuracy import Fidelity, Verdict
from headrace.optimize.search.journal import Begun, Compared, Event, Failed, Judged, Said
from headrace.optimize.search.state import State

_STEPS = {
    "build": "making",
    "try": "timing",
    "score": "asking the baseline for its answers:",
    "screen": "screening",
    "judge": "judging",
    "compare": "comparing the best:",
    "weigh": "weighing",
    "write": "writing",
}


@contextmanager
def search_progress(what: str, budget_s: float) -> Iterator[Callable[[Event, State], None]]:
    """Show how far a search is, where somebody watches; elsewhere, a line for each result."""
    if not sys.stderr.isatty():
        yield lambda event, _: _line(event, say)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(f"optimizing {what}", total=budget_s, left="")
        began: float | None = None

        def on_event(event: Event, state: State) -> None:
            nonlocal began
            if began is None:
                began = time.monotonic() - event.at_s
            if isinstance(event, Begun):
                bar.update(task, description=f"{_STEPS.get(event.step, event.step)} {event.name}")
            if isinstance(event, Said):
                bar.update(task, description=event.text)
            left_s = max(0.0, budget_s - state.at_s)
            bar.update(task, completed=min(state.at_s, budget_s), left=f"{left_s:.0f} s left")
            _line(event, bar.console.print)

        yield on_event


def _line(event: Event, tell: Callable[[str], None]) -> None:
    """A line for what was found out."""
    match event:
        case Failed():
            tell(f"  {event.name}: given up: {event.reason}")
        case Judged(is_part=True):
            tell(f"  {event.name}: so far: {event.verdict.reason}")
        case Judged():
            tell(_judged(event.name, event.verdict))
        case Compared():
            tell(_judged(event.name, event.fidelity))
        case _:
            pass


def _judged(name: str, judged: Verdict | Fidelity) -> str:
    return f"  {name}: {'good' if judged.passes else 'rejected'}: {judged.reason}"
