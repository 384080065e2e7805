"""Where does the time of a run go, by operator? What the engines' own profilers say, added up."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from headrace.core import Tensors
from headrace.optimize.profiling.messages import Operator, Operators
from headrace.runtimes import LoadOptions
from headrace.runtimes.optimized_file import FILE_NAME, OptimizedManifest
from headrace.runtimes.tuning import UNTUNED, Tuning

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
    tuning: Tuning = UNTUNED,
) -> Operators:
    """The shares of a few runs of one model file, which is loaded once more for that.

    Args:
        folder: Where the profiler may write.
    """
    if runtime == "optimized":
        runtime, path, tuning = _member(path, rows)
    try:
        match runtime:
            case "onnx":
                times, runs = _of_onnx(path, inputs, folder, tuning), _RUNS
            case "openvino":
                times, runs = _of_openvino(path, inputs), 1
            case _:
                return Operators(reason=f"not available for the runtime '{runtime}'")
    except Exception as error:  # noqa: BLE001  # a profiler of somebody's, on a model of somebody's
        return Operators(reason=f"{type(error).__name__}: {error}"[:_MAX_REASON])
    items = shares(times, runs=runs)
    if not items:
        return Operators(reason=f"the profiler of '{runtime}' said nothing")
    return Operators(rows=rows, length=length, items=items)


def _member(path: Path, rows: int) -> tuple[str, Path, Tuning]:
    """Who runs a batch of so many rows of an optimized model."""
    manifest = msgspec.json.decode((path / FILE_NAME).read_bytes(), type=OptimizedManifest)
    member = next(
        (one for one in manifest.members if one.up_to_rows is None or rows <= one.up_to_rows),
        manifest.members[-1],
    )
    return member.runtime, path / member.path, member.tuning


def shares(times: Iterable[tuple[str, float]], *, runs: int) -> tuple[Operator, ...]:
    """Kinds of operators by their share of the time, the largest first; the rest is `others`.

    Args:
        times: Name of a kind, and seconds of one call.
        runs: How many runs these calls belong to.
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
    """Kind and seconds of each kernel call in a trace of ONNX Runtime's profiler.

    Args:
        skip_runs: How many runs at its beginning do not count.
    """
    if not isinstance(events, list):
        return []
    begins = sorted(
        event["ts"] for event in events if _is(event, "Session") and event["name"] == "model_run"
    )
    since = begins[skip_runs] if len(begins) > skip_runs else 0
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
    """What ONNX Runtime's profiler says of a session with the options that a replica has."""
    import onnxruntime as ort  # noqa: PLC0415  # only for models that it runs

    from headrace.runtimes.onnx_file import find_onnx_file  # noqa: PLC0415  # as above

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
    from headrace.runtimes.openvino_file import find_openvino_file  # noqa: PLC0415  # extra
    from headrace.runtimes.openvino_model import (  # noqa: PLC0415  # as above
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
