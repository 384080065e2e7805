"""Sandboxed profiling process: `python -m headrace.optimize.profiling.measure`.

It runs in its own directory with `request.json` as input. Events go to standard output as JSON
lines; output of the model goes to standard error.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import (
    CodeNotAllowedError,
    HeadraceError,
    Tensors,
    UnsupportedModelError,
)
from headrace.core.processes import resident_bytes
from headrace.optimize.profiling.grid import (
    LENGTHS,
    MAX_WINDOW_S,
    GridPlan,
    Rounds,
    Run,
    best_rows,
    in_rounds,
    is_worth_more,
    main_length,
    plan_of,
    remaining,
    time_runs,
    window_s,
)
from headrace.optimize.profiling.messages import (
    NO_LENGTH,
    Event,
    GridCell,
    Loaded,
    ModelMemory,
    Operator,
    Operators,
    ProfileDone,
    ProfileFailed,
    ProfileNote,
    ProfileProgress,
    ProfileRequest,
    Setting,
)
from headrace.runtimes import (
    LoadOptions,
    Model,
    code_of_model,
    detect_runtime,
    find_padding,
    generated_inputs,
    get_runtime,
    load_model,
    runs_code,
)
from headrace.runtimes.base import UNTUNED, Tuning
from headrace.runtimes.optimized.file import FILE_NAME, OptimizedManifest
from headrace.runtimes.probe import VARIABLE_SIZES

TOP: Final = 15
_RUNS: Final = 5
_WARM: Final = 1
_MAX_REASON: Final = 400


def by_operator(
    path: Path,
    runtime: str,
    inputs: Tensors,
    *,
    rows: int,
    length: int,
    folder: Path,
) -> Operators:
    """Profile a few runs by operator, on a separate load of the model.

    Args:
        folder: Directory for the profiler's files.
    """
    tuning = UNTUNED
    if runtime == "optimized":
        # Profile the member of an optimized model that runs batches of this size.
        manifest = msgspec.json.decode((path / FILE_NAME).read_bytes(), type=OptimizedManifest)
        member = next(
            (
                engine
                for engine in manifest.members
                if engine.up_to_rows is None or rows <= engine.up_to_rows
            ),
            manifest.members[-1],
        )
        runtime, path, tuning = member.runtime, path / member.path, member.tuning
    try:
        match runtime:
            case "onnx":
                times, runs = _of_onnx(path, inputs, folder, tuning), _RUNS
            case "openvino":
                times, runs = _of_openvino(path, inputs), 1
            case _:
                return Operators(reason=f"not available for the runtime '{runtime}'")
    except Exception as error:  # noqa: BLE001  # third-party profiler and model
        return Operators(reason=f"{type(error).__name__}: {error}"[:_MAX_REASON])
    items = shares(times, runs=runs)
    if not items:
        return Operators(reason=f"the profiler of '{runtime}' returned no data")
    return Operators(rows=rows, length=length, items=items)


def shares(times: Iterable[tuple[str, float]], *, runs: int) -> tuple[Operator, ...]:
    """Return operator kinds by their share of the time, largest first; the rest is `others`.

    Args:
        times: Operator kind and seconds of each call.
        runs: Number of runs that the calls belong to.
    """
    spent: dict[str, float] = {}
    calls: dict[str, int] = {}
    for name, seconds in times:
        spent[name] = spent.get(name, 0.0) + seconds
        calls[name] = calls.get(name, 0) + 1
    total = sum(spent.values())
    if not total:
        return ()
    ordered = sorted(spent, key=lambda name: (-spent[name], name))
    groups = [(name, [name]) for name in ordered[:TOP]]
    if ordered[TOP:]:
        groups.append((f"{len(ordered) - TOP} others", ordered[TOP:]))
    return tuple(
        Operator(
            name=label,
            share_ratio=sum(spent[name] for name in names) / total,
            run_s=sum(spent[name] for name in names) / runs,
            calls=sum(calls[name] for name in names) / runs,
        )
        for label, names in groups
    )


def onnx_times(events: object, *, skip_runs: int = 0) -> list[tuple[str, float]]:
    """Return kind and seconds of each kernel call in an ONNX Runtime trace.

    Args:
        skip_runs: Warm-up runs to skip.
    """
    if not isinstance(events, list):
        return []
    starts = sorted(
        event["ts"] for event in events if _is(event, "Session") and event["name"] == "model_run"
    )
    since = starts[skip_runs] if len(starts) > skip_runs else 0
    return [
        (str(event["args"]["op_name"]), event["dur"] / 1e6)
        for event in events
        if _is(event, "Node")
        and event["name"].endswith("_kernel_time")
        and isinstance(event.get("args"), Mapping)
        and event["args"].get("op_name")
        and event["ts"] >= since
    ]


def _is(event: object, category: str) -> bool:
    return (
        isinstance(event, Mapping)
        and event.get("cat") == category
        and isinstance(event.get("name"), str)
        and isinstance(event.get("dur"), int)
        and isinstance(event.get("ts"), int)
    )


def _of_onnx(path: Path, inputs: Tensors, folder: Path, tuning: Tuning) -> list[tuple[str, float]]:
    """Profile an ONNX Runtime session with a replica's options."""
    import onnxruntime as ort  # noqa: PLC0415  # only for models that it runs

    from headrace.runtimes.onnx.file import find_onnx_file  # noqa: PLC0415  # as above

    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = tuning.arena
    settings.enable_profiling = True
    settings.profile_file_prefix = str(folder / "operators")
    disabled = tuning.disabled_optimizers
    session = ort.InferenceSession(
        str(find_onnx_file(path)),
        settings,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=["SkipLayerNormFusion"] if disabled is None else list(disabled),
    )
    for _ in range(_WARM + _RUNS):
        session.run(None, inputs)
    trace = Path(session.end_profiling())
    try:
        return onnx_times(json.loads(trace.read_bytes()), skip_runs=_WARM)
    finally:
        trace.unlink(missing_ok=True)


def _of_openvino(path: Path, inputs: Tensors) -> list[tuple[str, float]]:
    from headrace.runtimes.openvino import (  # noqa: PLC0415  # as above
        find_openvino_file,  # extra
        import_openvino,
        openvino_settings,
    )

    core: Any = import_openvino().Core()
    model = core.read_model(find_openvino_file(path).path)
    settings = {**openvino_settings(model, LoadOptions()), "PERF_COUNT": True}
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    for _ in range(_WARM + 1):
        request.infer(dict(enumerate(inputs.values())))
    return [
        (str(info.node_type), info.real_time.total_seconds())
        for info in request.profiling_info
        if info.real_time.total_seconds() > 0.0
    ]


def find_lengths(
    model: Model, requested: tuple[int, ...], *, location: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the requested or default lengths that the model takes, and the requested it refuses.

    Args:
        where: Model path for error messages.

    Raises:
        UnsupportedModelError: It runs with no length.
    """
    if not model.signature.has_variable_size:
        run_once(model, NO_LENGTH)
        return (NO_LENGTH,), ()
    tried = requested or LENGTHS
    usable = tuple(length for length in tried if _runs(model, length))
    if not usable and not requested:
        usable = tuple(size for size in VARIABLE_SIZES if _runs(model, size))[:1]
    if not usable:
        msg = f"{location}: the model runs with none of these lengths: {tried}"
        raise UnsupportedModelError(msg)
    return usable, tuple(length for length in requested if length not in usable)


def run_once(model: Model, length: int) -> None:
    """Run one generated row of this length."""
    model.run(generated_inputs(model, rows=1, variable=max(length, 1)))


def _runs(model: Model, length: int) -> bool:
    try:
        run_once(model, length)
    except HeadraceError:
        return False
    return True


EventSink = Callable[[Event], None]
_FIRST_SHARE: Final = 0.2
"""Share of the budget for batches that are run one at a time."""
_FIRST_WINDOW_S: Final = 1.0
"""Longest first window of a setting that is measured in rounds later."""
_ROUNDS_SHARE: Final = 0.45
"""Share of the budget for rounds: half before other lengths and threads, the rest after them."""
_OPERATORS_SHARE: Final = 0.05
_OF_MEMORY: Final = 0.8
_FOREIGN: Final = 0.05
"""CPU share of other processes above which a note is added."""


class ModelMeasurement:
    """Measurement of one model; results go to `emit`. Call `run` once."""

    def __init__(
        self,
        request: ProfileRequest,
        emit: EventSink,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._request = request
        self._emit = emit
        self._clock = clock
        self._path = Path(request.path)
        self._until = clock() + request.budget_s
        self._reserved_s = request.budget_s * _ROUNDS_SHARE
        self._cells: list[GridCell] = []

    def run(self) -> None:
        """Measure as much as the budget allows.

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
            # Measure the memory while all cores run the largest batch.
            largest = replace(cells[-1].setting, runs=max(plan.runs))
            time_runs(_run_of(model, largest), largest, seconds=0.0)
            self._emit(
                ModelMemory(
                    before_bytes=before,
                    loaded_bytes=after_load,
                    one_row_bytes=after_one,
                    largest_bytes=resident_bytes(),
                    largest_rows=rows[-1],
                    length=plan.length,
                )
            )
            left = remaining(plan, rows, best_rows(cells), cores=self._request.cores)
            here = [
                setting
                for setting in left
                if setting.threads == 1 and setting.length == plan.length
            ]
            others = left[len(here) :]
            self._grid(model, here, behind=len(others), most_s=_FIRST_WINDOW_S)
            rounds = Rounds(
                in_rounds(self._cells, plan, best_rows(cells)),
                total_s=max(self._left_s(), 0.0),
                clock=self._clock,
            )
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
        self._emit(ProfileProgress(text="time by operator", left_s=max(self._left_s(), 0.0)))
        length = plan.length
        with self._loaded(1) as (model, _, _):
            inputs = generated_inputs(model, rows=1, variable=max(length, 1))
        with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
            folder = Path(name)
            self._emit(
                by_operator(self._path, runtime, inputs, rows=1, length=length, folder=folder)
            )
        self._report_foreign()
        self._emit(ProfileDone())

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

    def _open(self, model: Model, *, load_s: float, runtime: str) -> GridPlan:
        requested = self._request.lengths
        lengths, refused = find_lengths(model, requested, location=str(self._path))
        for size in refused:
            self._emit(ProfileNote(text=f"the model does not run with length {size}"))
        length = main_length(lengths, requested)
        self._emit(
            Loaded(
                runtime=runtime,
                load_s=load_s,
                batched=model.signature.batched,
                concurrent=model.concurrent,
                length=length,
                lengths=lengths,
                padding=padding.settings if (padding := find_padding(model)) else None,
            )
        )
        return plan_of(
            self._request,
            batched=model.signature.batched,
            concurrent=model.concurrent,
            lengths=lengths,
            length=length,
        )

    def _batches(self, model: Model, plan: GridPlan) -> list[GridCell]:
        """Measure growing batches one at a time, until they are no longer useful."""
        cells: list[GridCell] = []
        until = self._clock() + self._left_s() * _FIRST_SHARE
        first_bytes = resident_bytes()
        for index, rows in enumerate(plan.rows):
            used = resident_bytes()
            fits = used + 2 * (used - first_bytes) < self._request.memory_bytes * _OF_MEMORY
            selected = bool(self._request.rows)
            if cells and not (selected or is_worth_more(cells, budget_s=self._request.budget_s)):
                break
            if cells and (self._clock() >= until or not fits):
                reason = "memory" if not fits else "time"
                self._emit(
                    ProfileNote(
                        text=f"batches of {rows} or more rows were not tried: not enough {reason}"
                    )
                )
                break
            likely_left = min(len(plan.rows) - index, 7)
            seconds = window_s(
                left_s=until - self._clock(), settings_left=likely_left, most_s=_FIRST_WINDOW_S
            )
            setting = Setting(threads=1, runs=1, rows=rows, length=plan.length)
            cell = self._measure(model, setting, seconds)
            if cell is None:
                break
            cells.append(cell)
        if not cells:
            msg = f"{self._path}: the model does not run on generated inputs"
            raise UnsupportedModelError(msg)
        return cells

    def _in_rounds(self, model: Model, rounds: Rounds, *, keep_s: float = 0.0) -> None:
        """Measure in rounds until `keep_s` is left."""
        runs = {setting: _run_of(model, setting) for setting in rounds.settings}
        while self._left_s() - keep_s > rounds.takes_s:
            text = f"round {rounds.count + 1} over {len(runs)} settings"
            self._emit(ProfileProgress(text=text, left_s=max(self._until - self._clock(), 0.0)))
            try:
                rounds.measure(runs)
            except HeadraceError as error:
                self._emit(ProfileNote(text=f"no more rounds were measured: {error}"))
                return
            for cell in rounds.cells():
                self._emit(cell)

    def _grid(
        self,
        model: Model,
        settings: list[Setting],
        *,
        behind: int,
        most_s: float = MAX_WINDOW_S,
    ) -> None:
        for index, setting in enumerate(settings):
            left = self._left_s()
            if left <= 0.0:
                text = f"{_what(settings[index:])} not measured: --budget is used up"
                self._emit(ProfileNote(text=text))
                return
            seconds = window_s(
                left_s=left - self._reserved_s,
                settings_left=len(settings) - index + behind,
                most_s=most_s,
            )
            self._measure(model, setting, seconds)

    def _other_sessions(self, settings: list[Setting]) -> None:
        """Measure the remaining settings, reloading the model for each thread count."""
        done = 0
        for threads, group in groupby(settings, key=lambda setting: setting.threads):
            own = list(group)
            done += len(own)
            if self._left_s() <= 0.0:
                self._emit(ProfileNote(text=f"{_what(own)} not measured: --budget is used up"))
                continue
            with self._loaded(threads) as (model, _, _):
                run_once(model, own[0].length)
                self._grid(model, own, behind=len(settings) - done)

    def _measure(self, model: Model, setting: Setting, seconds: float) -> GridCell | None:
        self._emit(ProfileProgress(text=setting.text, left_s=max(self._until - self._clock(), 0.0)))
        run = _run_of(model, setting)
        try:
            run()
            cell = time_runs(run, setting, seconds=seconds, clock=self._clock)
        except HeadraceError as error:
            self._emit(ProfileNote(text=f"{setting.text}: {error}"))
            return None
        self._cells.append(cell)
        self._emit(cell)
        return cell

    def _left_s(self) -> float:
        return self._until - self._request.budget_s * _OPERATORS_SHARE - self._clock()

    def _report_foreign(self) -> None:
        ratios = [cell.foreign_ratio for cell in self._cells]
        if ratios and max(ratios) > _FOREIGN:
            mean = sum(ratios) / len(ratios)
            text = (
                f"other processes used {mean:.0%} of the machine on average, at most "
                f"{max(ratios):.0%}: the figures are worse than on an idle machine"
            )
            self._emit(ProfileNote(text=text))


def _run_of(model: Model, setting: Setting) -> Run:
    inputs = generated_inputs(model, rows=setting.rows, variable=max(setting.length, 1))
    return lambda: model.run(inputs)


def _what(settings: list[Setting]) -> str:
    """Return a text such as `3 settings (4 rows, length 64; ...) were`."""
    first = "; ".join(setting.text for setting in settings[:2])
    if len(settings) == 1:
        return f"one setting ({first}) was"
    more = "; ..." if len(settings) > 2 else ""  # noqa: PLR2004  # as many as are named
    return f"{len(settings)} settings ({first}{more}) were"


REQUEST: Final = "request.json"
_MAX_ERROR: Final = 4000


def main() -> int:
    """Execute the request in the working directory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    Path("/proc/self/oom_score_adj").write_text(
        "1000"
    )  # out of memory, the kernel kills this process first
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=ProfileRequest)
    cores = sorted(os.sched_getaffinity(0))[: request.cores]
    os.sched_setaffinity(0, cores)

    def emit(event: Event) -> None:
        output.write(msgspec.json.encode(event) + b"\n")

    profile(request, emit)
    return 0


def profile(
    request: ProfileRequest, emit: EventSink, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Measure, and emit `ProfileFailed` on errors."""
    path = Path(request.path)
    try:
        runtime = _checked_runtime(path, request)
        ModelMeasurement(msgspec.structs.replace(request, runtime=runtime), emit, clock).run()
    except CodeNotAllowedError as error:
        emit(
            ProfileFailed(
                error=str(error), needs_code=error.runtime, why_code=error.reason[:_MAX_ERROR]
            )
        )
    except HeadraceError as error:
        emit(ProfileFailed(error=str(error)[:_MAX_ERROR], code=error.code))
    except MemoryError as error:
        emit(ProfileFailed(error=f"it exceeds its memory limit: {error}"))
    except Exception as error:  # noqa: BLE001  # third-party model and library
        emit(ProfileFailed(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR]))


def _checked_runtime(path: Path, request: ProfileRequest) -> str:
    """Return the model's runtime.

    Raises:
        CodeNotAllowedError: The model would run code, and the request does not allow it.
        UnsupportedModelError: No runtime takes it.
    """
    if not path.exists():
        msg = f"{path}: no such file or directory"
        raise UnsupportedModelError(msg)
    runtime = get_runtime(request.runtime) if request.runtime else detect_runtime(path)
    if not request.allow_code and runs_code(runtime, path):
        raise CodeNotAllowedError(str(path), runtime.name, code_of_model(runtime, path))
    return runtime.name


if __name__ == "__main__":
    sys.exit(main())
