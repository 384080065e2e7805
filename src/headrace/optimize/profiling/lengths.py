"""Which sizes of its variable dimensions does a model take? Found by running it."""

from headrace.core import VARIABLE, HeadraceError, ModelSignature, UnsupportedModelError
from headrace.optimize.profiling.grid import LENGTHS
from headrace.optimize.profiling.messages import NO_LENGTH
from headrace.runtimes import Model, made_up_inputs
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
