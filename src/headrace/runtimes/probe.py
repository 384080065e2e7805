"""Is axis 0 of a model the batch? What a model declares is a hint; running it is the proof.

A dynamic first axis may as well be time: a cumulative sum, a softmax over rows, a recurrent net
without a batch. Batching such a model would mix callers' answers, so each candidate is run on two
requests alone and then together, and the answers are compared.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.core import (
    VARIABLE,
    Array,
    HeadraceError,
    ModelSignature,
    Tensors,
    TensorSpec,
    example_inputs,
)

Run = Callable[[Tensors], Tensors]

VARIABLE_SIZES: Final = (2, 1, 8, 32, 64, 224, 1024)
"""Sizes tried for variable dimensions until the model runs. 2 comes first, because an axis of
size 1 hides what happens along it; 224 is the usual side of an image, and sound takes more."""

SAME_RATIO: Final = 1e-3
"""Largest difference, over the output's largest value, that counts as rounding: kernels for
another number of rows sum in another order."""

QUANTISED_RATIO: Final = 0.05
"""The same for models with dynamic quantisation, whose scale is taken over the whole batch. What
really depends on its neighbours differs by far more than that."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What running a model proved.

    `batched` and the `reason` for it. `variable`: a size of variable dimensions with which the
    model runs; None if none was found. `outputs`: the declared ones, with the batch axis and the
    dimensions that were declared wrong made variable.
    """

    batched: bool
    reason: str
    variable: int | None
    outputs: tuple[TensorSpec, ...]


def probe_batch(
    run: Run,
    inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
    *,
    axis_names: Mapping[str, str] | None = None,
) -> Probe:
    """Decide whether axis 0 is the batch by running the model a few times.

    A model that never runs on made-up inputs is believed: its declared axes decide.

    Args:
        run: Runs the model; may raise HeadraceError.
        axis_names: For an input's name, how the model calls its axis 0; unnamed ones may differ.
    """
    why_not = _why_no_candidate(inputs, axis_names or {})
    signature = ModelSignature(inputs=inputs, outputs=outputs, batched=not why_not)
    variable, answers = _first_that_runs(run, signature)
    if answers is None:
        batched = not why_not
        declared = why_not or "axis 0 is declared variable"
        reason = f"{declared}; the model did not run on made-up inputs, so this is not proved"
        return Probe(batched=batched, reason=reason, variable=None, outputs=outputs)
    if not why_not:
        why_not = _why_rows_depend(run, signature, variable)
    outputs = tuple(_corrected(spec, answers, batched=not why_not) for spec in outputs)
    reason = why_not or "rows answered alone and together alike"
    return Probe(batched=not why_not, reason=reason, variable=variable, outputs=outputs)


def difference_ratio(got: Array, want: Array) -> float:
    """Largest difference of two arrays over the largest value in `want`; infinite if shapes differ.

    Equal infinities and not-a-numbers count as equal. For strings, booleans and integers any
    difference counts as 1.
    """
    if got.shape != want.shape:
        return np.inf
    if got.dtype.kind not in "fc":
        return 0.0 if np.array_equal(got, want) else 1.0
    wide_got, wide_want = got.astype(np.float64), want.astype(np.float64)
    same = (wide_got == wide_want) | (np.isnan(wide_got) & np.isnan(wide_want))
    if same.all():
        return 0.0
    finite = np.isfinite(wide_want)
    if not (np.isfinite(wide_got) == finite).all() or not same[~finite].all():
        return np.inf
    scale = float(np.abs(wide_want[finite]).max())
    return float(np.abs(wide_got[finite] - wide_want[finite]).max()) / max(scale, 1e-6)


def _why_no_candidate(inputs: tuple[TensorSpec, ...], axis_names: Mapping[str, str]) -> str:
    """Why the declaration alone rules a batch out; empty if it does not."""
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
    has_variable = any(
        VARIABLE in (spec.shape[1:] if signature.batched else spec.shape)
        for spec in signature.inputs
    )
    for size in VARIABLE_SIZES if has_variable else VARIABLE_SIZES[:1]:
        try:
            return size, run(example_inputs(signature, variable=size))
        except HeadraceError as error:
            _log.debug("the model does not run with variable dimensions of %d: %s", size, error)
    return 0, None


def _why_rows_depend(run: Run, signature: ModelSignature, variable: int) -> str:
    """Why axis 0 is no batch, as found by running; empty if it is one."""
    first = example_inputs(signature, rows=2, variable=variable, seed=1)
    second = example_inputs(signature, rows=1, variable=variable, seed=2)
    together = {name: np.concatenate([first[name], second[name]]) for name in first}
    try:
        alone = [run(first), run(second)]
        answers = run(together)
    except HeadraceError as error:
        return f"the model fails on several rows: {error}"
    worst = 0.0
    exact = True
    for name, got in answers.items():
        parts = [part[name] for part in alone]
        if [part.shape[:1] for part in [*parts, got]] != [(2,), (1,), (3,)]:
            return f"axis 0 of output '{name}' is not the number of rows"
        if got.shape[1:] != parts[0].shape[1:] or got.shape[1:] != parts[1].shape[1:]:
            return f"the shape of output '{name}' depends on the number of rows"
        ratio = difference_ratio(got, np.concatenate(parts))
        if got.dtype.kind in "fc":
            worst = max(worst, ratio)
        else:
            exact = exact and ratio == 0
    return _why_different(worst, exact=exact, has_floats=_has_floats(answers))


def _why_different(worst: float, *, exact: bool, has_floats: bool) -> str:
    if worst > QUANTISED_RATIO:
        return f"rows answer differently together than alone (by {worst:.0%} of the largest value)"
    if not exact and not has_floats:
        return "rows answer differently together than alone"
    # A label may flip where two scores tie within rounding; the scores then speak for it.
    if worst > SAME_RATIO:
        _log.warning(
            "rows answer slightly differently together than alone (by %.1f %% of the largest "
            "value), as dynamically quantised models do; the model is served batched",
            worst * 100,
        )
    return ""


def _has_floats(answers: Tensors) -> bool:
    return any(array.dtype.kind in "fc" for array in answers.values())


def _corrected(spec: TensorSpec, answers: Tensors, *, batched: bool) -> TensorSpec:
    """`spec` as it was seen: converted models often declare their outputs' shapes wrong."""
    seen = answers[spec.name]
    shape = spec.shape if len(spec.shape) == seen.ndim else (VARIABLE,) * seen.ndim
    shape = tuple(
        want if want in (VARIABLE, got) else VARIABLE
        for want, got in zip(shape, seen.shape, strict=True)
    )
    if batched and shape:
        shape = (VARIABLE, *shape[1:])
    return replace(spec, shape=shape)
