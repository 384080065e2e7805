"""Decision whether axis 0 of a model is the batch, from an analysis of its graph and from runs.

A dynamic first axis may as well be time: a cumulative sum, a softmax over rows, a recurrent net
without a batch. Batching such a model would mix callers' answers. A format whose graph can be read
brings a verdict on its operators. Runs are a second line: rows of several magnitudes are run alone
and then together, and the outputs are compared row by row.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    Datatype,
    HeadraceError,
    ModelSignature,
    RowIndependence,
    Tensors,
    TensorSpec,
    example_inputs,
)
from headrace.runtimes.rows.values import RowVerdict

Run = Callable[[Tensors], Tensors]
_Draw = Callable[["np.random.Generator", tuple[int, ...]], Array]

VARIABLE_SIZES: Final = (2, 1, 8, 32, 64, 224, 1024)
"""Sizes tried for variable dimensions until the model runs. 2 comes first, because an axis of size
1 hides effects along it; 224 is the usual side of an image, and audio needs more.
"""

SAME_RATIO: Final = 1e-3
"""Largest difference, over the row's largest value, that counts as rounding: kernels for another
number of rows sum in another order.
"""

QUANTISED_RATIO: Final = 0.05
"""The same for a graph that is proven: quantisation turns rounding into whole steps. A real
dependence on neighbouring rows is far larger.
"""

_MAX_PROBING_S: Final = 0.25
"""Time limit for runs on rows of other magnitudes; a model with longer runs is not probed so."""
_MAX_PROVEN_S: Final = 0.1
"""The same for a graph that is proven, as every start of a replica waits for it."""
_LONGER: Final = 5
"""Preferred size of variable dimensions in these runs; rows of unequal lengths fit in it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchProbe:
    """Result of the analysis of a model's graph and of test runs."""

    batched: bool
    """Whether axis 0 is the batch."""
    row_independence: RowIndependence | None
    """Evidence for `batched`; None if the model declares no batch axis."""
    reason: str
    """Explanation of `row_independence`."""
    difference: str
    """Difference that runs showed between rows together and alone; empty if none."""
    variable: int | None
    """Size of variable dimensions with which the model runs; None if it ran with none."""
    outputs: tuple[TensorSpec, ...]
    """Declared outputs, with the batch axis and wrongly declared dimensions made variable."""

    def signature(self, inputs: tuple[TensorSpec, ...]) -> ModelSignature:
        """Return the signature of a model with these inputs."""
        return ModelSignature(
            inputs=inputs,
            outputs=self.outputs,
            batched=self.batched,
            row_independence=self.row_independence,
            row_reason=self.reason,
        )


@dataclass(frozen=True, slots=True)
class _Difference:
    """Reason why rows run together differ from rows run alone."""

    reason: str
    is_shape: bool = False
    """Whether shapes differ, which a declaration cannot override."""


def probe_batch(
    run: Run,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axis_names: Mapping[str, str] | None = None,
    analyse: Callable[[], RowVerdict] | None = None,
    declared: str = "",
    clock: Callable[[], float] = time.perf_counter,
) -> BatchProbe:
    """Decide whether axis 0 is the batch.

    A proven model is batched unless a run contradicts the proof. An unproven model is batched only
    if its rows are declared independent and axis 0 of all outputs is the number of rows.

    Args:
        run: Runs the model; may raise HeadraceError.
        axis_names: By input name, the model's name of axis 0; unnamed axes may differ.
        analyse: Returns the verdict on the graph; None if the format is not analysed.
        declared: Name of the party that declares rows independent; empty for none.
    """
    why_not = _why_no_candidate(inputs, axis_names or {})
    signature = ModelSignature(inputs=inputs, outputs=outputs, batched=not why_not)
    variable, answers = _first_that_runs(run, signature)
    if why_not:
        observed = tuple(_corrected(spec, answers, batched=False) for spec in outputs)
        return BatchProbe(
            batched=False,
            row_independence=None,
            reason=why_not,
            difference="",
            variable=None if answers is None else variable,
            outputs=observed,
        )
    verdict = _verdict(analyse)
    is_proven = verdict.is_proven
    difference = None
    if answers is not None:
        started = clock()
        difference = _base_difference(run, signature, variable, is_proven=is_proven)
        limit_s = _MAX_PROVEN_S if is_proven else _MAX_PROBING_S
        took_s = clock() - started
        if difference is None and took_s < limit_s:
            until = clock() + limit_s

            def has_time() -> bool:
                return clock() < until

            difference = _probed_difference(run, signature, variable, has_time, is_proven=is_proven)
    batched, state, reason = _decided(verdict, difference, declared)
    if answers is None:
        reason = f"{reason}; the model did not run on generated inputs"
    if difference is not None and batched:
        _log.warning(
            "the model is served batched, as %s declares, although %s", declared, difference.reason
        )
    return BatchProbe(
        batched=batched,
        row_independence=state,
        reason=reason,
        difference="" if difference is None else difference.reason,
        variable=None if answers is None else variable,
        outputs=tuple(_corrected(spec, answers, batched=batched) for spec in outputs),
    )


def _verdict(analyse: Callable[[], RowVerdict] | None) -> RowVerdict:
    """Return the verdict of an analysis; a graph that makes the analysis fail is not proven."""
    if analyse is None:
        return RowVerdict(why_not="operators of this format are not analysed")
    try:
        return analyse()
    except Exception:  # noqa: BLE001  # logged; a model that it fails on is served unbatched
        # The analysis reads untrusted files; a model that it fails on can be served unbatched.
        _log.exception("the analysis of the graph failed; the model is not proven")
        return RowVerdict(why_not="the analysis of the graph failed")


def _decided(
    verdict: RowVerdict, difference: _Difference | None, declared: str
) -> tuple[bool, RowIndependence, str]:
    """Return whether the model is batched, with the evidence and the reason."""
    if difference is not None:
        reasons = [difference.reason] if verdict.is_proven else [verdict.why_not, difference.reason]
        reason = "; ".join(reasons)
        if declared and not difference.is_shape:
            return True, RowIndependence.DECLARED, f"{declared} declares it, although {reason}"
        return False, RowIndependence.REFUTED, reason
    if verdict.is_proven:
        return True, RowIndependence.PROVEN, "no operator of the graph mixes rows"
    if declared:
        return (
            True,
            RowIndependence.DECLARED,
            f"{declared} declares it; not proven: {verdict.why_not}",
        )
    return False, RowIndependence.UNPROVEN, verdict.why_not


def difference_ratio(actual: Array, expected: Array) -> float:
    """Return the largest difference over the largest value in `want`; infinite if shapes differ.

    Equal infinities and not-a-numbers count as equal. For strings, booleans and integers any
    difference counts as 1.
    """
    if actual.shape != expected.shape:
        return np.inf
    if actual.dtype.kind not in "fc":
        return 0.0 if np.array_equal(actual, expected) else 1.0
    wide_actual, wide_expected = actual.astype(np.float64), expected.astype(np.float64)
    same = (wide_actual == wide_expected) | (np.isnan(wide_actual) & np.isnan(wide_expected))
    if same.all():
        return 0.0
    finite = np.isfinite(wide_expected)
    if not (np.isfinite(wide_actual) == finite).all() or not same[~finite].all():
        return np.inf
    scale = float(np.abs(wide_expected[finite]).max())
    return float(np.abs(wide_actual[finite] - wide_expected[finite]).max()) / max(scale, 1e-6)


def _why_no_candidate(inputs: tuple[TensorSpec, ...], axis_names: Mapping[str, str]) -> str:
    """Return why the declared shapes rule a batch out; empty if they do not."""
    if not inputs:
        return "the model takes no inputs"
    for spec in inputs:
        if not spec.shape or spec.shape[0] != VARIABLE:
            return f"axis 0 of input '{spec.name}' has a fixed size"
    names = {axis_names.get(spec.name, "") for spec in inputs} - {""}
    if len(names) > 1:
        return f"axis 0 has different names at different inputs ({', '.join(sorted(names))})"
    return ""


def _first_that_runs(run: Run, signature: ModelSignature) -> tuple[int, Tensors | None]:
    for size in VARIABLE_SIZES if signature.has_variable_size else VARIABLE_SIZES[:1]:
        try:
            return size, run(example_inputs(signature, variable=size))
        except HeadraceError as error:
            _log.debug("the model does not run with variable dimensions of %d: %s", size, error)
    return 0, None


def _base_difference(
    run: Run, signature: ModelSignature, variable: int, *, is_proven: bool
) -> _Difference | None:
    """Return the difference between two ordinary requests run alone and together."""
    first = example_inputs(signature, rows=2, variable=variable, seed=1)
    second = example_inputs(signature, rows=1, variable=variable, seed=2)
    together = {name: np.concatenate([first[name], second[name]]) for name in first}
    try:
        alone = [run(first), run(second)]
        answers = run(together)
    except HeadraceError as error:
        return _Difference(f"the model fails on several rows: {error}", is_shape=True)
    for name, actual in answers.items():
        parts = [part[name] for part in alone]
        if [part.shape[:1] for part in [*parts, actual]] != [(2,), (1,), (3,)]:
            reason = f"axis 0 of output '{name}' is not the number of rows"
            return _Difference(reason, is_shape=True)
        if actual.shape[1:] != parts[0].shape[1:] or actual.shape[1:] != parts[1].shape[1:]:
            reason = f"the shape of output '{name}' depends on the number of rows"
            return _Difference(reason, is_shape=True)
    rows = {name: np.concatenate([part[name] for part in alone]) for name in answers}
    expected = [{name: array[i : i + 1] for name, array in rows.items()} for i in range(3)]
    kinds = ["ordinary"] * 3
    return _row_difference(answers, expected, kinds, is_proven=is_proven)


def _probed_difference(
    run: Run,
    signature: ModelSignature,
    variable: int,
    has_time: Callable[[], bool],
    *,
    is_proven: bool,
) -> _Difference | None:
    """Return the difference for rows of other magnitudes; rows rejected alone are skipped."""
    size = _LONGER if _runs(run, signature, _LONGER) else variable
    alone: dict[str, tuple[Tensors, Tensors]] = {}
    for kind, row in _probing_rows(signature, size):
        if not has_time() and len(alone) > 1:
            break
        try:
            alone[kind] = (row, run(row))
        except HeadraceError as error:
            _log.debug("the model rejects a row with %s: %s", kind, error)
    usual = [kind for kind in alone if kind != _MISSING]
    batches = [usual, usual[::-1][-2:], [*usual[:1] * 3, *usual[1:2]]]
    if _MISSING in alone:
        batches.append([*usual[:1], _MISSING, *usual[1:3]])
    for kinds in batches:
        if len(kinds) < 2 or not has_time():  # noqa: PLR2004  # one row has no neighbours
            continue
        rows = [alone[kind][0] for kind in kinds]
        together = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        try:
            answers = run(together)
        except HeadraceError as error:
            others = ", ".join(dict.fromkeys(kinds))
            return _Difference(f"the model fails on rows together ({others}): {error}")
        expected = [alone[kind][1] for kind in kinds]
        difference = _row_difference(answers, expected, kinds, is_proven=is_proven)
        if difference is not None:
            return difference
    return None


_ORDINARY: Final = frozenset({"ordinary", "equal values", "values around 1e-3", "a shorter length"})
_MISSING: Final = "missing values"


def _shorter(_: "np.random.Generator", shape: tuple[int, ...]) -> Array:
    """Return masks and lengths of a row that is shorter than its neighbours."""
    ones = np.ones(shape, np.int64)
    ones[..., (shape[-1] + 1) // 2 if len(shape) > 1 else 1 :] = 0
    return ones


def _with_missing(rng: "np.random.Generator", shape: tuple[int, ...]) -> Array:
    values = rng.normal(0, 1, shape)
    values[..., ::2] = np.nan
    return values


def _normal(scale: float) -> _Draw:
    return lambda rng, shape: rng.normal(0, scale, shape)


def _uniform(low: float, high: float) -> _Draw:
    return lambda rng, shape: rng.uniform(low, high, shape)


def _integers(low: int, high: int) -> _Draw:
    return lambda rng, shape: rng.integers(low, high, shape)


_KINDS: Final[Mapping[str, tuple[_Draw, _Draw, bytes]]] = {
    "ordinary": (_uniform(0, 1), _integers(0, 2), b"a"),
    "values around 1e3": (_normal(1e3), _integers(2, 1000), b"some longer text, 1e3"),
    "negative values": (_uniform(-100, 0), _integers(-100, 0), b"-1"),
    "large integers": (_normal(30), _integers(30_000, 30_001), b"30000"),
    "small integers": (_uniform(0, 1), _integers(0, 8), b"7"),
    "a shorter length": (_uniform(0, 1), _shorter, b""),
    "values around 1e-3": (_normal(1e-3), _integers(0, 1), b"0.001"),
    "equal values": (_uniform(1, 1), _integers(1, 2), b"b"),
    _MISSING: (_with_missing, _integers(0, 2), b"a"),
}
"""By kind of row: its floats, its integers and its text."""


def _probing_rows(signature: ModelSignature, variable: int) -> Iterator[tuple[str, Tensors]]:
    """Yield single rows of several magnitudes."""
    rng = np.random.default_rng(4)
    has_floats = any(spec.datatype.dtype.kind == "f" for spec in signature.inputs)
    for kind, (number, whole, text) in _KINDS.items():
        if kind == _MISSING and not has_floats:
            continue
        row = example_inputs(signature, variable=variable, seed=3)
        if kind != "ordinary":
            for spec in signature.inputs:
                row[spec.name] = _filled(spec.datatype, row[spec.name], rng, number, whole, text)
        yield kind, row


def _filled(  # noqa: PLR0917  # one loop's body
    datatype: Datatype,
    example: Array,
    rng: "np.random.Generator",
    number: _Draw,
    whole: _Draw,
    text: bytes,
) -> Array:
    """Return a tensor shaped like an example, with other values."""
    dtype, shape = datatype.dtype, example.shape
    if datatype is Datatype.BYTES:
        is_text = example.size and example.flat[0] == b"a"
        return np.full(shape, text, dtype) if is_text else example
    if dtype.kind == "f":
        return number(rng, shape).astype(dtype)
    if dtype.kind == "b":
        return whole(rng, shape) > 0
    limits = np.iinfo(dtype)
    return np.clip(whole(rng, shape), limits.min, limits.max).astype(dtype)


def _runs(run: Run, signature: ModelSignature, size: int) -> bool:
    if not any(VARIABLE in spec.shape[1:] for spec in signature.inputs):
        return False
    try:
        run(example_inputs(signature, variable=size))
    except HeadraceError:
        return False
    return True


def _row_difference(
    answers: Tensors, alone: Sequence[Tensors], kinds: Sequence[str], *, is_proven: bool
) -> _Difference | None:
    """Return the first row that differs between together and alone, relative to its largest value.

    For a proven graph only rows of ordinary values are compared: huge or missing values affect
    their neighbours through rounding.
    """
    has_floats = any(array.dtype.kind in "fc" for array in answers.values())
    limit = QUANTISED_RATIO if is_proven else SAME_RATIO
    for i, kind in enumerate(kinds):
        for name, actual in answers.items():
            expected = alone[i][name]
            if len(actual) != len(kinds) or actual.shape[1:] != expected.shape[1:]:
                reason = f"the shape of output '{name}' depends on other rows"
                return _Difference(reason, is_shape=True)
            if kind == _MISSING or (is_proven and kind not in _ORDINARY):
                continue
            is_float = expected.dtype.kind in "fc"
            # A label may flip where two scores tie within rounding; the scores are compared
            # instead.
            if (has_floats and not is_float) or (is_float and not np.isfinite(expected).all()):
                continue
            ratio = difference_ratio(actual[i : i + 1], expected)
            if ratio > limit:
                by = f" by {ratio * 100:.3g} % of its largest value" if is_float else ""
                description = "" if kind == "ordinary" else f" with {kind}"
                return _Difference(f"output '{name}' of a row{description} differs{by} in a batch")
    return None


def _corrected(spec: TensorSpec, answers: Tensors | None, *, batched: bool) -> TensorSpec:
    """Return `spec` corrected by a run: converted models often declare wrong output shapes."""
    if answers is None:
        return spec
    array = answers[spec.name]
    shape = spec.shape if len(spec.shape) == array.ndim else (VARIABLE,) * array.ndim
    shape = tuple(
        expected if expected in (VARIABLE, actual) else VARIABLE
        for expected, actual in zip(shape, array.shape, strict=True)
    )
    if batched and shape:
        shape = (VARIABLE, *shape[1:])
    return replace(spec, shape=shape)
