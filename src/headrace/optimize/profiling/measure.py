"""Measurement of a model in this process: the grid, memory, operators, within a budget."""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Final

from headrace.core import VARIABLE, HeadraceError, ModelSignature, UnsupportedModelError
from headrace.core.processes import resident_bytes
from headrace.optimize.profiling.grid import (
    LENGTHS,
    MAX_WINDOW_S,
    Plan,
    best_rows,
    in_rounds,
    is_worth_more,
    main_length,
    plan_of,
    remaining,
    window_s,
)
from headrace.optimize.profiling.messages import (
    NO_LENGTH,
    Cell,
    Done,
    Event,
    Loaded,
    Memory,
    Note,
    ProfileRequest,
    Progress,
)
from headrace.optimize.profiling.operators import by_operator
from headrace.optimize.profiling.rounds import Rounds, Run
from headrace.optimize.profiling.timing import Setting, time_runs
from headrace.runtimes import LoadOptions, Model, find_padding, load_model, made_up_inputs
from headrace.runtimes.probe import VARIABLE_SIZES


def find_lengths(
    model: Model, wanted: tuple[int, ...], *, where: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those of the wanted or usual lengths with which the model runs; the wanted that it refuses.

    Args:
        where: The model, for the error.

    Raises:
        UnsupportedModelError: It runs with none.
    """
    if not has_variable(model.signature):
        run_once(model, NO_LENGTH)
        return (NO_LENGTH,), ()
    tried = wanted or LENGTHS
    found = tuple(length for length in tried if _runs(model, length))
    if not found and not wanted:
        found = tuple(size for size in VARIABLE_SIZES if _runs(model, size))[:1]
    if not found:
        msg = f"{where}: the model runs with none of the lengths that were tried ({tried})"
        raise UnsupportedModelError(msg)
    return found, tuple(length for length in wanted if length not in found)


def has_variable(signature: ModelSignature) -> bool:
    """Whether an input has a variable dimension besides the batch."""
    first = 1 if signature.batched else 0
    return any(VARIABLE in spec.shape[first:] for spec in signature.inputs)


def run_once(model: Model, length: int) -> None:
    """Run one row of this length, made up."""
    model.run(made_up_inputs(model, rows=1, variable=max(length, 1)))


def _runs(model: Model, length: int) -> bool:
    try:
        run_once(model, length)
    except HeadraceError:
        return False
    return True


Say = Callable[[Event], None]
_FIRST_SHARE: Final = 0.2
"""Of the time for the batches that are run one at a time."""
_FIRST_WINDOW_S: Final = 1.0
"""At most for a setting that is measured in rounds later."""
_ROUNDS_SHARE: Final = 0.45
"""Of the time for rounds: half of it before other lengths and threads, and what these leave."""
_OPERATORS_SHARE: Final = 0.05
_OF_MEMORY: Final = 0.8
_FOREIGN: Final = 0.05
"""So much of the machine that others use is worth a note."""


class Measuring:
    """The measurement of one model, told to `say` as it goes; `run` it once."""

    def __init__(
        self, request: ProfileRequest, say: Say, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._request = request
        self._say = say
        self._clock = clock
        self._path = Path(request.path)
        self._until = clock() + request.budget_s
        self._reserved_s = request.budget_s * _ROUNDS_SHARE
        self._cells: list[Cell] = []

    def run(self) -> None:
        """Measure what fits the time.

        Raises:
            HeadraceError: The model cannot be loaded, or does not run.
        """
        before = resident_bytes()
        with self._loaded(1) as (model, load_s, runtime):
            after_load = resident_bytes()
            plan = self._open(model, load_s=load_s, runtime=runtime)
            run_once(model, plan.length)
            after_one = resident_bytes()
            cells = self._batches(model, plan)
            rows = [cell.rows for cell in cells]
            self._all_at_once(model, cells[-1], runs=max(plan.runs))
            self._say(
                Memory(
                    before_bytes=before,
                    loaded_bytes=after_load,
                    one_row_bytes=after_one,
                    largest_bytes=resident_bytes(),
                    largest_rows=rows[-1],
                    length=plan.length,
                )
            )
            left = remaining(plan, rows, best_rows(cells), cores=self._request.cores)
            here = [one for one in left if one.threads == 1 and one.length == plan.length]
            others = left[len(here) :]
            self._grid(model, here, behind=len(others), most_s=_FIRST_WINDOW_S)
            rounds = self._new_rounds(in_rounds(self._cells, plan, best_rows(cells)))
            if others:
                self._reserved_s /= 2
                keep_s = max(self._left_s() - self._reserved_s, 0.0)
                self._in_rounds(model, rounds, keep_s=keep_s)
            else:
                self._in_rounds(model, rounds)
        self._other_sessions(others)
        if others and self._left_s() > rounds.takes_s:
            with self._loaded(1) as (model, _, _):
                self._in_rounds(model, rounds)
        self._operators(plan, runtime)
        self._tell_foreign()
        self._say(Done())

    @contextmanager
    def _loaded(self, threads: int) -> Iterator[tuple[Model, float, str]]:
        started = self._clock()
        options = LoadOptions(
            intra_op_threads=threads,
            device="cpu",
            rows_independent=self._request.rows_independent,
        )
        model = load_model(self._path, self._request.runtime, options)
        try:
            yield model, self._clock() - started, self._request.runtime
        finally:
            model.close()

    def _open(self, model: Model, *, load_s: float, runtime: str) -> Plan:
        wanted = self._request.lengths
        lengths, refused = find_lengths(model, wanted, where=str(self._path))
        for one in refused:
            self._say(Note(text=f"the model does not run with a length of {one}"))
        length = main_length(lengths, wanted)
        self._say(
            Loaded(
                runtime=runtime,
                load_s=load_s,
                batched=model.signature.batched,
                concurrent=model.concurrent,
                length=length,
                lengths=lengths,
                padding=found.settings if (found := find_padding(model)) else None,
            )
        )
        return plan_of(
            self._request,
            batched=model.signature.batched,
            concurrent=model.concurrent,
            lengths=lengths,
            length=length,
        )

    def _batches(self, model: Model, plan: Plan) -> list[Cell]:
        """Batches of growing size, one at a time, until they are no longer worth it."""
        found: list[Cell] = []
        until = self._clock() + self._left_s() * _FIRST_SHARE
        first_bytes = resident_bytes()
        for place, rows in enumerate(plan.rows):
            used = resident_bytes()
            fits = used + 2 * (used - first_bytes) < self._request.memory_bytes * _OF_MEMORY
            chosen = bool(self._request.rows)
            if found and not (chosen or is_worth_more(found, budget_s=self._request.budget_s)):
                break
            if found and (self._clock() >= until or not fits):
                why = "memory" if not fits else "time"
                self._say(Note(text=f"batches of {rows} rows and more were not tried: {why}"))
                break
            likely_left = min(len(plan.rows) - place, 7)
            seconds = window_s(
                left_s=until - self._clock(), settings_left=likely_left, most_s=_FIRST_WINDOW_S
            )
            setting = Setting(threads=1, runs=1, rows=rows, length=plan.length)
            cell = self._measure(model, setting, seconds)
            if cell is None:
                break
            found.append(cell)
        if not found:
            msg = f"{self._path}: the model does not run on made-up inputs"
            raise UnsupportedModelError(msg)
        return found

    def _all_at_once(self, model: Model, cell: Cell, *, runs: int) -> None:
        """Let the memory be what it is when all cores run the largest batch."""
        setting = Setting(threads=1, runs=runs, rows=cell.rows, length=cell.length)
        inputs = made_up_inputs(model, rows=cell.rows, variable=max(cell.length, 1))
        time_runs(lambda: model.run(inputs), setting, seconds=0.0)

    def _new_rounds(self, cells: Sequence[Cell]) -> Rounds:
        return Rounds(
            {
                Setting(
                    threads=cell.threads, runs=cell.runs, rows=cell.rows, length=cell.length
                ): cell
                for cell in cells
            },
            total_s=max(self._left_s(), 0.0),
            clock=self._clock,
        )

    def _in_rounds(self, model: Model, rounds: Rounds, *, keep_s: float = 0.0) -> None:
        """Measure in rounds until only so much time is left."""
        runs = {setting: _run_of(model, setting) for setting in rounds.settings}
        while self._left_s() - keep_s > rounds.takes_s:
            text = f"round {rounds.count + 1} over {len(runs)} settings"
            self._say(Progress(text=text, left_s=max(self._until - self._clock(), 0.0)))
            try:
                rounds.measure(runs)
            except HeadraceError as error:
                self._say(Note(text=f"no more rounds were measured: {error}"))
                return
            for cell in rounds.cells():
                self._say(cell)

    def _grid(
        self,
        model: Model,
        settings: list[Setting],
        *,
        behind: int,
        most_s: float = MAX_WINDOW_S,
    ) -> None:
        for place, setting in enumerate(settings):
            left = self._left_s()
            if left <= 0.0:
                text = f"{_what(settings[place:])} not measured: --budget is used up"
                self._say(Note(text=text))
                return
            seconds = window_s(
                left_s=left - self._reserved_s,
                settings_left=len(settings) - place + behind,
                most_s=most_s,
            )
            self._measure(model, setting, seconds)

    def _other_sessions(self, settings: list[Setting]) -> None:
        """Measure the rest, loading the model again for each number of threads."""
        done = 0
        for threads, group in groupby(settings, key=lambda setting: setting.threads):
            own = list(group)
            done += len(own)
            if self._left_s() <= 0.0:
                self._say(Note(text=f"{_what(own)} not measured: --budget is used up"))
                continue
            with self._loaded(threads) as (model, _, _):
                run_once(model, own[0].length)
                self._grid(model, own, behind=len(settings) - done)

    def _measure(self, model: Model, setting: Setting, seconds: float) -> Cell | None:
        self._say(Progress(text=setting.text, left_s=max(self._until - self._clock(), 0.0)))
        run = _run_of(model, setting)
        try:
            run()
            cell = time_runs(run, setting, seconds=seconds, clock=self._clock)
        except HeadraceError as error:
            self._say(Note(text=f"{setting.text}: {error}"))
            return None
        self._cells.append(cell)
        self._say(cell)
        return cell

    def _operators(self, plan: Plan, runtime: str) -> None:
        self._say(Progress(text="time by operator", left_s=max(self._left_s(), 0.0)))
        with self._loaded(1) as (model, _, _):
            inputs = made_up_inputs(model, rows=1, variable=max(plan.length, 1))
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
            self._say(
                by_operator(
                    self._path, runtime, inputs, rows=1, length=plan.length, folder=Path(folder)
                )
            )

    def _left_s(self) -> float:
        return self._until - self._request.budget_s * _OPERATORS_SHARE - self._clock()

    def _tell_foreign(self) -> None:
        ratios = [cell.foreign_ratio for cell in self._cells]
        if ratios and max(ratios) > _FOREIGN:
            mean = sum(ratios) / len(ratios)
            text = (
                f"other processes used {mean:.0%} of the machine on average, at most "
                f"{max(ratios):.0%}: figures are worse than on a quiet one"
            )
            self._say(Note(text=text))


def _run_of(model: Model, setting: Setting) -> Run:
    inputs = made_up_inputs(model, rows=setting.rows, variable=max(setting.length, 1))
    return lambda: model.run(inputs)


def _what(settings: list[Setting]) -> str:
    """`3 settings (4 rows, length 64; ...) were`."""
    first = "; ".join(setting.text for setting in settings[:2])
    if len(settings) == 1:
        return f"one setting ({first}) was"
    more = "; ..." if len(settings) > 2 else ""  # noqa: PLR2004  # as many are named
    return f"{len(settings)} settings ({first}{more}) were"
