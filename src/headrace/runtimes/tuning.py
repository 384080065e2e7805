"""How the optimizer wants a model run: what a runtime heeds besides the general options."""

import msgspec


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
