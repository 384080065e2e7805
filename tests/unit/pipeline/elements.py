"""Arrays of BYTES, and rows of them one by one."""

import numpy as np

from headrace.core import Array, Tensors
from headrace.runtimes import Model


def elements(*values: str | bytes) -> Array:
    made = np.empty(len(values), np.object_)
    made[:] = [value.encode() if isinstance(value, str) else value for value in values]
    return made


def one_by_one(model: Model, inputs: Tensors) -> Tensors:
    """What a model answers to each row alone, put together."""
    rows = len(next(iter(inputs.values())))
    answers = [model.run({n: a[i : i + 1] for n, a in inputs.items()}) for i in range(rows)]
    return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}
