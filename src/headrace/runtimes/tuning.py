"""How the optimizer wants a model run: what a runtime heeds besides the general options."""

import re
from typing import Final

import msgspec

from headrace.core import UnsupportedModelError

PRECISIONS: Final = ("f32", "bf16", "f16")
GRAPH_OPTIMIZATIONS: Final = ("all", "extended", "basic", "none")
MOST_THREADS: Final = 1024
_OPTIMIZER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MOST_OPTIMIZERS: Final = 256
_SHOWN: Final = 40


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the engines; each runtime heeds those that it knows, and ignores the others.

    The defaults are how a model is run that nobody optimized. `precision`: in what OpenVINO
    computes, `f32`, `bf16` or `f16`; empty goes by the model. `graph_optimizations`: of ONNX
    Runtime, `all`, `extended`, `basic` or `none`. `disabled_optimizers`: of ONNX Runtime, by their
    names; None for the runtime's own choice. `arena`: whether memory of the largest batch is kept.
    `spinning`: whether idle threads wait for work without sleeping. `intra_op_threads`: None for
    what the replica plans.
    """

    precision: str = ""
    graph_optimizations: str = "all"
    disabled_optimizers: tuple[str, ...] | None = None
    arena: bool = False
    spinning: bool = False
    intra_op_threads: int | None = None


UNTUNED = Tuning()


def check_tuning(tuning: Tuning) -> None:
    """Refuse what no engine knows, whichever runtime would heed it.

    Raises:
        UnsupportedModelError: A value is none of those there are; the message lists them.
    """
    _check_one_of("precision", tuning.precision, ("", *PRECISIONS))
    _check_one_of("graph_optimizations", tuning.graph_optimizations, GRAPH_OPTIMIZATIONS)
    disabled = tuning.disabled_optimizers or ()
    if len(disabled) > _MOST_OPTIMIZERS:
        _refuse(f"disables {len(disabled)} optimizers; at most {_MOST_OPTIMIZERS} can be")
    for name in disabled:
        if _OPTIMIZER.fullmatch(name) is None:
            _refuse(
                f"disables the optimizer {_shown(name)}, which is no name that ONNX Runtime gives "
                "one: they are of letters, digits and underscores, as SkipLayerNormFusion"
            )
    threads = tuning.intra_op_threads
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        _refuse(f"asks for {threads} threads inside a run; 1 to {MOST_THREADS} can be")


def _check_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        known = ", ".join(name for name in allowed if name)
        _refuse(f"asks for the {what} {_shown(value)}, which there is not; there are: {known}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _refuse(what: str) -> None:
    raise UnsupportedModelError(f"the model's tuning {what}")
