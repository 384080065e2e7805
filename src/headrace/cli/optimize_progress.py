"""What people see while `headrace optimize` searches: the step, the time left, each result."""

# ruff: noqa: PLC0415  # rich is loaded where somebody watches

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from headrace.cli.output import say
from headrace.optimize.accuracy import Fidelity, Verdict
from headrace.optimize.search.journal import (
    Begun,
    Compared,
    Ended,
    Event,
    Failed,
    Judged,
    Said,
    State,
)

_STEPS = {
    "build": "making",
    "try": "timing",
    "score": "asking the baseline for its answers:",
    "screen": "screening",
    "judge": "judging",
    "compare": "comparing the best:",
    "weigh": "weighing",
    "mix": "timing batches of several sizes:",
    "write": "writing",
}


@contextmanager
def search_progress(what: str, budget_s: float) -> Iterator[Callable[[Event, State], None]]:
    """Show how far a search is, where somebody watches; elsewhere, a line for each result."""
    if not sys.stderr.isatty():
        with _lines(say) as on_line:
            yield lambda event, _: on_line(event)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[left]}"),
        TimeElapsedColumn(),
    )
    with (
        Progress(*columns, console=Console(stderr=True), transient=True) as bar,
        _lines(bar.console.print) as on_line,
    ):
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
            on_line(event)

        yield on_event


@contextmanager
def _lines(tell: Callable[[str], None]) -> Iterator[Callable[[Event], None]]:
    """Takes events, and tells what was found out, at the latest when it is left."""
    given_up = GivenUp()

    def on_event(event: Event) -> None:
        for line in lines_of(event, given_up):
            tell(line)

    yield on_event
    if line := given_up.told():
        tell(line)


@dataclass(slots=True)
class GivenUp:
    """Recipes and candidates that were given up one after the other, for one reason."""

    names: list[str] = field(default_factory=list)
    reason: str = ""

    def told(self) -> str:
        """The line for them, once; empty if there are none."""
        line = f"  {', '.join(self.names)}: given up: {self.reason}" if self.names else ""
        self.names.clear()
        return line


def lines_of(event: Event, given_up: GivenUp) -> Iterator[str]:
    """The lines for what was found out; those given up wait, as the next may be for the same."""
    if isinstance(event, Begun | Ended | Said):
        return
    if not (isinstance(event, Failed) and event.reason == given_up.reason) and (
        line := given_up.told()
    ):
        yield line
    match event:
        case Failed():
            given_up.names.append(event.name)
            given_up.reason = event.reason
        case Judged(is_part=True):
            yield f"  {event.name}: so far: {event.verdict.reason}"
        case Judged():
            yield _judged(event.name, event.verdict)
        case Compared():
            yield _judged(event.name, event.fidelity)
        case _:
            pass


def _judged(name: str, judged: Verdict | Fidelity) -> str:
    return f"  {name}: {'good' if judged.passes else 'rejected'}: {judged.reason}"
